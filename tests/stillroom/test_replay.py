"""Replay against scipy and Pillow, to the bit over cuts and processes, and the probe that guards it."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.replay import KERNEL, RANDAUGMENT_OPS, probe_digest, replay
from stillroom.view_fields import FIELD_GRID, VIEW_TYPE, from_numbers, to_numbers, view_type
from stillroom.views import ViewPolicy, draw_views, identity_views

AS_IS = {"kernel": KERNEL, "side_px": None}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def views_of(pixels_BCHW: np.ndarray, kind: pa.StructType = VIEW_TYPE, **numbers: object) -> pa.StructArray:
    """Identity views with some numbers replaced, by one or by one a view."""
    count, _, height, width = pixels_BCHW.shape
    whole = to_numbers(identity_views(np.tile([height, width], (count, 1)), kind)) | {"partner": [None] * count}
    return from_numbers(whole | {name: np.broadcast_to(number, (count, *np.shape(number)[1:])) for name, number in numbers.items()}, kind)


def bilinear(image_HW: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return map_coordinates(image_HW.astype(float), [y, x], order=1, mode="nearest")


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 8, 8), (2, 3, 17, 30)])
def test_the_identity_view_gives_the_same_bytes(shape):
    pixels = noise(*shape)
    assert replay(pixels, views_of(pixels), AS_IS).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("height, width", [(8, 8), (28, 28), (19, 33)])
def test_affine_is_within_a_level_of_scipy(height, width):
    rng = np.random.default_rng(1)
    pixels = noise(40, 1, height, width)
    shift_y, shift_x = rng.integers(-512, 513, (2, 40))
    rotate = rng.integers(-18000, 18001, 40)
    scale_y, scale_x = rng.integers(8000, 12001, (2, 40))
    seen = replay(pixels, views_of(pixels, shift_y=shift_y, shift_x=shift_x, rotate=rotate, scale_y=scale_y, scale_x=scale_x), AS_IS)

    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = np.mgrid[:height, :width]
    for view in range(40):
        angle = np.deg2rad(rotate[view] / 100)
        # Rows run downwards, so a counter-clockwise turn of (y, x) is [[cos, -sin], [sin, cos]].
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        forward = turn @ np.diag([scale_y[view], scale_x[view]]) / 10000
        moved = np.stack([rows, columns], -1) - centre - np.array([shift_y[view], shift_x[view]]) / 256
        source = moved @ np.linalg.inv(forward).T + centre
        expected = bilinear(pixels[view, 0], source[..., 0], source[..., 1])
        assert np.abs(seen[view, 0] - expected).max() <= 1


def test_a_quarter_turn_is_exact_and_counter_clockwise():
    pixels = noise(3, 2, 9, 9)
    assert (replay(pixels, views_of(pixels, rotate=9000), AS_IS) == np.rot90(pixels, axes=(2, 3))).all()
    assert (replay(pixels, views_of(pixels, rotate=18000), AS_IS) == np.rot90(pixels, 2, axes=(2, 3))).all()


def test_a_whole_shift_moves_right_and_down_and_repeats_the_edge():
    pixels = noise(1, 1, 6, 6)
    seen = replay(pixels, views_of(pixels, shift_y=2 * 256, shift_x=1 * 256), AS_IS)
    assert (seen[..., 2:, 1:] == pixels[..., :-2, :-1]).all()
    assert (seen[..., 0, :] == seen[..., 2, :]).all() and (seen[..., :, 0] == seen[..., :, 1]).all()


def test_a_flip_mirrors_and_twice_is_nothing():
    pixels = noise(4, 3, 7, 10)
    flip = views_of(pixels, flip=True)
    once = replay(pixels, flip, AS_IS)
    assert (once == pixels[..., ::-1]).all()
    assert (replay(once, flip, AS_IS) == pixels).all()


def test_a_crop_of_the_target_size_is_cut_out_exactly():
    pixels = noise(1, 3, 20, 24)
    seen = replay(pixels, views_of(pixels, crop_y=3, crop_x=5, crop_h=8, crop_w=8), {"kernel": KERNEL, "side_px": 8})
    assert (seen == pixels[..., 3:11, 5:13]).all()


@pytest.mark.parametrize("crop_h, crop_w", [(5, 7), (8, 3), (10, 10)])
def test_enlarging_a_crop_is_within_a_level_of_float_bilinear(crop_h, crop_w):
    side, pixels = 16, noise(1, 1, 12, 12)
    seen = replay(pixels, views_of(pixels, crop_y=1, crop_x=2, crop_h=crop_h, crop_w=crop_w), {"kernel": KERNEL, "side_px": side})
    y, x = (np.arange(side) + 0.5) * crop_h / side - 0.5, (np.arange(side) + 0.5) * crop_w / side - 0.5
    expected = bilinear(pixels[0, 0, 1 : 1 + crop_h, 2 : 2 + crop_w], *np.meshgrid(y, x, indexing="ij"))
    assert np.abs(seen[0, 0] - expected).max() <= 1


@pytest.mark.parametrize("side", [7, 16, 31])
def test_shrinking_a_crop_is_within_a_level_of_pillow(side):
    pixels = noise(1, 3, 70, 90)
    seen = replay(pixels, views_of(pixels, crop_y=4, crop_x=9, crop_h=60, crop_w=75), {"kernel": KERNEL, "side_px": side})
    # Cut out first: with `box`, Pillow's filter would look beyond the crop.
    image = Image.fromarray(pixels[0].transpose(1, 2, 0)).crop((9, 4, 84, 64))
    expected = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), int).transpose(2, 0, 1)
    assert np.abs(seen[0] - expected).max() <= 1


def test_kernels_keep_a_flat_image_flat():
    pixels = np.full((64, 1, 11, 13), 255, np.uint8)
    views = draw_views(ViewPolicy(side_px=9), [str(row) for row in range(64)], np.tile([11, 13], (64, 1)), Draw(0, "test"), 1).values
    assert (replay(pixels, views, {"kernel": KERNEL, "side_px": 9}) == 255).all()


@given(st.integers(1, 59), st.sampled_from([None, 6, 12]))
def test_a_view_does_not_depend_on_its_batch(cut, side_px):
    pixels, contract = noise(60, 1, 9, 10), {"kernel": KERNEL, "side_px": side_px}
    views = draw_views(ViewPolicy(), [str(row) for row in range(60)], np.tile([9, 10], (60, 1)), Draw(3, "test"), 2).flatten()
    pixels = np.repeat(pixels, 2, axis=0)
    parts = [replay(pixels[:cut], views[:cut], contract), replay(pixels[cut:], views[cut:], contract)]
    assert replay(pixels, views, contract).tobytes() == np.concatenate(parts).tobytes()


def test_images_of_different_sizes_go_together_where_a_side_is_given():
    images = [noise(3, 20, 30, seed=1), noise(3, 11, 9, seed=2), noise(3, 20, 30, seed=3)]
    sizes = np.array([image.shape[1:] for image in images])
    views = draw_views(ViewPolicy(), ["a", "b", "c"], sizes, Draw(0, "test"), 2).values.take(pa.array([1, 3, 5]))
    contract = {"kernel": KERNEL, "side_px": 12}
    together = replay(images, views, contract)
    alone = [replay(image[None], views[row : row + 1], contract)[0] for row, image in enumerate(images)]
    assert (together == np.stack(alone)).all()
    with pytest.raises(StoreError, match=r"3x11x9.*give side_px"):
        replay(images, views, AS_IS)


# Teacher and trainer are different processes: both run this, on 2,000 drawn records.
SCRIPT = """
import hashlib, sys
import numpy as np
from stillroom.draws import Draw
from stillroom.replay import replay
from stillroom.views import ViewPolicy, draw_views, view_contract
policy = ViewPolicy(scale_axes="each", side_px=14)
pixels = np.random.default_rng(0).integers(0, 256, (250, 3, 16, 18), dtype=np.uint8)
views = draw_views(policy, [f"s{row}" for row in range(250)], np.tile([16, 18], (250, 1)), Draw(7, "reinforce.teacher"), 8).values
seen = replay(np.repeat(pixels, 8, axis=0), views, view_contract(policy))
assert len(seen) == 2000
digest = hashlib.sha256(seen.tobytes()).hexdigest()
"""


# Every kind of view, 2,000 of each and all at once, in an interpreter of its own or a child of one.
EVERY_KIND = """
import hashlib
import numpy as np
import pyarrow as pa
from stillroom.draws import Draw
from stillroom.replay import replay, replay_alone
from stillroom.views import KINDS, Peers, ViewPolicy, draw_views, to_numbers, view_contract

IDS = [f"s{row}" for row in range(250)]
PIXELS = np.random.default_rng(0).integers(0, 256, (250, 3, 16, 16), dtype=np.uint8)

def shown(kinds):
    policy = ViewPolicy(kinds=kinds, scale_axes="each", erase=0.7, mix=0.9, field_px=3, side_px=14)
    views = draw_views(policy, IDS, np.tile([16, 16], (250, 1)), Draw(7, "reinforce.teacher"), 8, peers=Peers(IDS)).values
    contract = view_contract(policy)
    pixels = np.repeat(PIXELS, 8, axis=0)
    partners = None
    if policy.mixing:
        rows = [int(one[1:]) if one else at // 8 for at, one in enumerate(views.field("partner").to_pylist())]
        numbers = to_numbers(views)["partner_view"]
        partners = replay_alone(PIXELS[rows], views.take(pa.array(8 * np.array(rows) + numbers)), contract)
    return hashlib.sha256(replay(pixels, views, contract, partners).tobytes()).hexdigest()

def digests():
    # Of plain views alone SelfMix would mix the same.
    return [*(shown(("crop", kind) if kind == "selfmix" else (kind,)) for kind in KINDS), shown(KINDS)]
"""


def test_two_thousand_records_replay_alike_in_a_fresh_process():
    here: dict[str, str] = {}
    exec(SCRIPT, here)
    there = subprocess.run([sys.executable, "-c", SCRIPT + "print(digest)"], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == here["digest"]


def test_two_thousand_records_of_every_kind_replay_alike_in_other_processes(tmp_path):
    (tmp_path / "every_kind.py").write_text(EVERY_KIND)
    ask = """
import json, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import every_kind
if __name__ == "__main__":
    found = [every_kind.digests()]
    for method, workers in (("fork", 1), ("spawn", 1), ("fork", 4)):
        with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
            found += [one.result() for one in [pool.submit(every_kind.digests) for _ in range(1 if workers == 1 else 2)]]
    json.dump(found, sys.stdout)
"""
    (tmp_path / "ask.py").write_text(ask)
    there = subprocess.run([sys.executable, str(tmp_path / "ask.py")], capture_output=True, text=True, check=True, timeout=120)
    here: dict[str, Any] = {}
    exec(EVERY_KIND, here)
    expected = here["digests"]()
    assert json.loads(there.stdout) == [expected] * 5
    # No two kinds do the same, and none does nothing.
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("op, matrix", [("shear_x", [[1, 0], [-0.18, 1]]), ("shear_y", [[1, -0.18], [0, 1]]), ("rotate", None), ("translate_x", None)])
def test_randaugments_moves_are_within_a_level_of_scipy(op, matrix):
    """At magnitude 18 of 30; `matrix` is where (y, x) comes from."""
    height, width = 20, 26
    pixels = noise(1, 1, height, width)
    kind = view_type(["randaugment"], 1)
    seen = replay(pixels, views_of(pixels, kind, op_1=RANDAUGMENT_OPS.index(op), magnitude_1=36), AS_IS)[0, 0]
    turn = np.deg2rad(18)
    matrix = matrix or ([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] if op == "rotate" else np.eye(2))
    shift = np.array([0, 18 * 150 * width / (331 * 30)]) if op == "translate_x" else np.zeros(2)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = np.mgrid[:height, :width]
    # x = x' - 0.18 y' for shear_x: the row says how y and x count, x below.
    source = np.einsum("ij,hwj->hwi", np.array(matrix, float), np.stack([rows, columns], -1) - centre - shift) + centre
    assert np.abs(seen - bilinear(pixels[0, 0], source[..., 0], source[..., 1])).max() <= 1


def test_a_random_field_moves_pixels_as_its_spline_says():
    pixels, kind = noise(1, 1, 24, 24), view_type(["random_field"])
    contract = {"kernel": KERNEL, "side_px": None, "random_field": {"px": 4.0, "thousandths": 0}}
    grid = np.zeros((1, FIELD_GRID, FIELD_GRID, 3), np.int8)
    grid[..., 1] = 127
    # A constant field is a shift: of 4 px, to where pixels come from.
    seen = replay(pixels, views_of(pixels, kind, random_field=grid), contract)
    assert (seen[..., :20] == pixels[..., 4:]).all()
    assert (replay(pixels, views_of(pixels, kind), contract) == pixels).all()


def test_quarter_turns_are_exact_and_want_squares():
    pixels, kind = noise(4, 3, 7, 7), view_type(["quarter_turns"])
    views = views_of(pixels, kind, quarter_turns=np.arange(4))
    for turns, seen in enumerate(replay(pixels, views, AS_IS)):
        assert (seen == np.rot90(pixels[turns], turns, axes=(1, 2))).all()
    with pytest.raises(StoreError, match="of 9x7 px can't be turned by quarters; give side_px"):
        replay(noise(1, 3, 7, 9), identity_views(np.array([[7, 9]]), kind), AS_IS)


def test_mixed_views_without_partners_are_refused():
    pixels = noise(1, 1, 4, 4)
    views = views_of(pixels, view_type(["mix"]), mix=1, partner="b", mix_weight=40_000)
    with pytest.raises(StoreError, match="mix in another image, 1 of 1, and no partners were given"):
        replay(pixels, views, AS_IS)


def test_the_kernels_still_are_what_they_were():
    # Whoever changes these on purpose raises KERNEL.
    assert KERNEL == 1
    assert probe_digest(AS_IS) == "07e4c1c21fdc298f2d9ed36fdc27d4535914edf632c824ad0abb4b6db1b16742"
    assert probe_digest({"kernel": KERNEL, "side_px": 24}) == "0d9bab10486f72945476b5b286ed7bf00d65734bd3e8c60ba97ef82b0f0db282"


@pytest.mark.parametrize("crop", [{"crop_w": 9}, {"crop_y": 1}, {"crop_x": -1, "crop_w": 4}, {"crop_h": 0}])
def test_a_crop_outside_the_image_is_refused(crop):
    pixels = noise(1, 1, 8, 8)
    with pytest.raises(StoreError, match="outside an image of 8x8 px; these are not the images"):
        replay(pixels, views_of(pixels, **crop), AS_IS)


def test_views_of_another_kernel_are_refused():
    pixels = noise(1, 1, 8, 8)
    with pytest.raises(StoreError, match=f"kernel {KERNEL + 1}.*has kernel {KERNEL}"):
        replay(pixels, views_of(pixels), {"kernel": KERNEL + 1, "side_px": None})


def test_no_views_give_no_pixels():
    pixels = noise(0, 3, 8, 8)
    assert replay(pixels, views_of(pixels), AS_IS).shape == (0, 3, 8, 8)
    assert len(replay([], views_of(pixels), AS_IS)) == 0
