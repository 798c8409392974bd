"""Drawing views: keyed by row and view, spread as torchvision's; and the contract that a column carries."""

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp

from stillroom.digests import canonical_json
from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.soft_labels import soft_label_type
from stillroom.views import (
    VIEW_TYPE,
    ViewPolicy,
    cell_bounds,
    check_contract,
    contract_of,
    draw_views,
    identity_views,
    label_of,
    replay,
    view_contract,
    views_field,
)

DRAW = Draw(7, "reinforce.teacher")
LABEL = {"num_classes": 10, "top_k": 5, "temperature": 1.0}


def ids(count: int) -> list[str]:
    return [f"sample-{row}" for row in range(count)]


def sizes(count: int, height: int = 28, width: int = 28) -> np.ndarray:
    return np.tile([height, width], (count, 1))


def columns(views: pa.ListArray) -> dict[str, np.ndarray]:
    return {field.name: views.values.field(field.name).to_numpy(zero_copy_only=False) for field in VIEW_TYPE}


@given(st.integers(1, 39))
def test_a_row_draws_the_same_in_any_batch(cut):
    whole = draw_views(ViewPolicy(), ids(40), sizes(40), DRAW, 3)
    parts = [draw_views(ViewPolicy(), ids(40)[part], sizes(40)[part], DRAW, 3) for part in (slice(cut), slice(cut, None))]
    assert whole.to_pylist() == [views for part in parts for views in part.to_pylist()]


def test_more_views_leave_the_first_ones_as_they_are():
    few, many = (draw_views(ViewPolicy(), ids(5), sizes(5), DRAW, count).to_pylist() for count in (3, 8))
    assert few == [views[:3] for views in many]


def test_views_differ_between_rows_and_between_views():
    drawn = draw_views(ViewPolicy(), ids(50), sizes(50), DRAW, 4).to_pylist()
    assert len({str(view) for views in drawn for view in views[1:]}) == 150


def test_view_0_is_plain_with_identity_and_only_with_it():
    whole = identity_views(sizes(30)).to_pylist()
    with_it, without = (draw_views(ViewPolicy(kinds=kinds), ids(30), sizes(30), DRAW, 2).to_pylist() for kinds in (("identity", "affine"), ("affine",)))
    assert [views[0] for views in with_it] == whole
    assert not any(view == plain for views, plain in zip(without, whole, strict=True) for view in views)


def test_a_kind_left_out_moves_no_other_number():
    every = columns(draw_views(ViewPolicy(), ids(30), sizes(30), DRAW, 2))
    affine = columns(draw_views(ViewPolicy(kinds=("identity", "affine")), ids(30), sizes(30), DRAW, 2))
    assert (every["rotate"] == affine["rotate"]).all() and (every["shift_x"] == affine["shift_x"]).all()
    assert not affine["flip"].any() and (affine["crop_h"] == 28).all()


def test_strengths_are_kept_and_reached():
    policy = ViewPolicy(kinds=("flip", "affine"), shift_px=1.5, rotate_deg=8, scale=0.08, flip=0.25)
    drawn = columns(draw_views(policy, ids(2000), sizes(2000), DRAW, 2))
    for values, largest in ((drawn["shift_y"], 384), (drawn["shift_x"], 384), (drawn["rotate"], 800), (drawn["scale_y"] - 10000, 800)):
        assert 0.99 * largest < values.max() <= largest and -0.99 * largest > values.min() >= -largest
        assert abs(values.mean()) < 0.03 * largest
    assert drawn["flip"].mean() == pytest.approx(0.25, abs=0.03)
    assert (drawn["scale_y"] == drawn["scale_x"]).all()
    each = columns(draw_views(ViewPolicy(scale_axes="each"), ids(100), sizes(100), DRAW, 2))
    assert (each["scale_y"] != each["scale_x"]).any()


@pytest.mark.parametrize("height, width", [(28, 28), (60, 100)])
def test_crops_are_spread_as_torchvision_draws_them(height, width):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    policy = ViewPolicy(kinds=("crop",), crop_scale=(0.2, 1.0))
    drawn = columns(draw_views(policy, ids(3000), sizes(3000, height, width), DRAW, 1))
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.2, 1.0], [0.75, 4 / 3]) for _ in range(3000)])
    for name, values in zip(("crop_y", "crop_x", "crop_h", "crop_w"), theirs.T, strict=True):
        assert ks_2samp(drawn[name], values).pvalue > 1e-3


def test_a_crop_of_a_strip_is_the_central_one():
    drawn = draw_views(ViewPolicy(kinds=("crop",), crop_scale=(0.9, 1.0)), ["a"], np.array([[10, 100]]), DRAW, 1).to_pylist()[0][0]
    assert (drawn["crop_y"], drawn["crop_x"], drawn["crop_h"], drawn["crop_w"]) == (0, 43, 10, 13)


@given(st.integers(1, 40), st.data())
def test_cells_lie_side_by_side_without_a_gap(size, data):
    grid = data.draw(st.integers(1, size))
    bounds = [cell_bounds(size, grid, index) for index in range(grid)]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])] and bounds[-1][1] == size
    widths = [stop - start for start, stop in bounds]
    assert widths == sorted(widths, reverse=True) and widths[0] - widths[-1] <= 1


def mosaic(height: int, width: int, grid: int) -> np.ndarray:
    """An image whose cells have a level each; uint8 [1, H, W]."""
    pixels = np.zeros((1, height, width), np.uint8)
    for cell in range(grid * grid):
        (top, bottom), (left, right) = cell_bounds(height, grid, cell // grid), cell_bounds(width, grid, cell % grid)
        pixels[:, top:bottom, left:right] = 20 * (cell + 1)
    return pixels


@pytest.mark.parametrize("kinds", [("crop",), ("crop", "flip", "affine"), ("identity", "affine"), ("flip",)])
@pytest.mark.parametrize("height, width, grid", [(8, 8, 2), (9, 7, 2), (11, 10, 3)])
def test_no_view_straddles_cells_and_every_cell_is_drawn(kinds, height, width, grid):
    policy = ViewPolicy(kinds=kinds, crop_scale=(0.08, 1.0), shift_px=3, rotate_deg=90, side_px=6)
    draws = 10_000 if kinds == ("crop",) else 2_000
    views = draw_views(policy, ids(draws // 2), sizes(draws // 2, height, width), DRAW, 2, np.full(draws // 2, grid)).values
    seen = replay(np.broadcast_to(mosaic(height, width, grid), (draws, 1, height, width)), views, view_contract(policy)).reshape(draws, -1)
    assert (seen == seen[:, :1]).all()
    counts = np.bincount(seen[:, 0] // 20 - 1, minlength=grid * grid)
    assert len(counts) == grid * grid and chisquare(counts).pvalue > 1e-3


def test_a_crop_in_a_cell_is_spread_as_one_of_an_image_of_that_size():
    policy = ViewPolicy(kinds=("crop",), crop_scale=(0.2, 1.0))
    inside = columns(draw_views(policy, ids(3000), sizes(3000, 56, 56), DRAW, 1, np.full(3000, 2)))
    alone = columns(draw_views(policy, ids(3000), sizes(3000), DRAW, 1))
    assert (inside["crop_h"] == alone["crop_h"]).all() and (inside["crop_w"] == alone["crop_w"]).all()
    assert (inside["crop_y"] % 28 == alone["crop_y"]).all() and (inside["crop_x"] % 28 == alone["crop_x"]).all()


def test_a_mosaic_changes_no_view_of_the_images_beside_it():
    whole = draw_views(ViewPolicy(), ids(6), sizes(6), DRAW, 3).to_pylist()
    mixed = draw_views(ViewPolicy(), ids(6), sizes(6), DRAW, 3, np.array([1, 1, 2, 1, 4, 1])).to_pylist()
    assert [one == other for one, other in zip(whole, mixed, strict=True)] == [True, True, False, True, False, True]


def test_a_grid_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="sample 'sample-1': a grid of 5 cells a side on 9x4 px"):
        draw_views(ViewPolicy(), ids(2), sizes(2, 4, 9), DRAW, 1, np.array([4, 5]))


def test_what_stores_hold_is_still_what_is_drawn_and_written():
    # Taken before mosaics were known: a stored view, a contract and so a digest must not move.
    drawn = draw_views(ViewPolicy(), ids(20), sizes(20), DRAW, 3)
    numbers = np.stack([values.astype(np.int64) for values in columns(drawn).values()])
    assert blake3(numbers.astype("<i8").tobytes()).hexdigest(length=16) == "79abc9d712c7eb1197b9d4dc03c1e474"
    assert blake3(canonical_json(view_contract(ViewPolicy(side_px=12)))).hexdigest(length=16) == "c476e9a9387d1da814c5c611a9afe0e1"
    assert label_of(views_field(view_contract(ViewPolicy()), soft_label_type(10, 5), LABEL)) == LABEL


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"kinds": ("flip", "flip")}, "kinds must be"),
        ({"kinds": ()}, "kinds must be"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale must be"),
        ({"crop_ratio": (2, 1)}, "crop_ratio must be"),
        ({"shift_px": 128}, "shift_px must be between 0 and 127"),
        ({"scale": 0.6}, "scale must be between 0 and 0.5"),
        ({"side_px": 0}, "side_px must be between"),
    ],
)
def test_a_policy_that_cannot_be_stored_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ViewPolicy(**wrong)


def test_the_contract_comes_back_from_a_file(tmp_path):
    policy = ViewPolicy(side_px=12)
    field = views_field(view_contract(policy), soft_label_type(10, 5), LABEL)
    with pa.ipc.new_file(tmp_path / "views.arrow", pa.schema([field])):
        pass
    with pa.ipc.open_file(tmp_path / "views.arrow") as file:
        back = file.schema.field("views")
    assert check_contract(back) == contract_of(back) == view_contract(policy)
    assert label_of(back) == LABEL
    assert [child.name for child in back.type.value_type] == [*(child.name for child in VIEW_TYPE), "soft_label"]


def test_views_without_a_teacher_say_that_their_label_is_the_rows():
    field = views_field(view_contract(ViewPolicy(side_px=12)))
    assert field.type == pa.list_(VIEW_TYPE) and label_of(field) == {"kind": "hard"}
    assert check_contract(field) == view_contract(ViewPolicy(side_px=12))


def nearest(starts_B, sizes_B, side):
    """A resize kernel that takes the nearest pixel: what a library's changed default would be."""
    at = starts_B[:, None] + (2 * np.arange(side) + 1) * sizes_B[:, None] // (2 * side)
    return at[..., None], np.full((*at.shape, 1), 2**16, np.int32)


@pytest.mark.parametrize(
    "name, kernel",
    [
        ("_taps", nearest),
        ("_between", lambda first, second, fraction: first << 11),
        ("cosine_sine", lambda angle: (np.cos(angle / 5729.0), np.sin(angle / 5729.0))),
    ],
)
def test_another_kernel_fails_the_probe(put_kernel, name, kernel):
    field = views_field(view_contract(ViewPolicy(side_px=16)), soft_label_type(10, 5), LABEL)
    check_contract(field)
    put_kernel(name, kernel)
    with pytest.raises(StoreError, match=r"column 'views': replays otherwise than when it was made .*build it again") as caught:
        check_contract(field)
    assert "\n" not in str(caught.value)


def test_a_column_without_contract_says_so():
    with pytest.raises(StoreError, match=r"column 'views': lacks stillroom\.views in its metadata"):
        check_contract(pa.field("views", pa.list_(VIEW_TYPE)))
