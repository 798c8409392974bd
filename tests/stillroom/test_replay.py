"""Replay against scipy and Pillow, to the bit over cuts and processes, and the probe that guards it."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.replay import KERNEL, VIEW_TYPE, probe_digest, replay
from stillroom.views import ViewPolicy, draw_views, identity_views

AS_IS = {"kernel": KERNEL, "side_px": None}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def views_of(pixels_BCHW: np.ndarray, **numbers: object) -> pa.StructArray:
    """Identity views with some fields replaced, by one number or one a view."""
    count, _, height, width = pixels_BCHW.shape
    whole = identity_views(np.tile([height, width], (count, 1)))
    arrays = [
        pa.array(np.broadcast_to(numbers[field.name], count).tolist(), field.type) if field.name in numbers else whole.field(field.name) for field in VIEW_TYPE
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(VIEW_TYPE))


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


def test_two_thousand_records_replay_alike_in_a_fresh_process():
    here: dict[str, str] = {}
    exec(SCRIPT, here)
    there = subprocess.run([sys.executable, "-c", SCRIPT + "print(digest)"], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == here["digest"]


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
