"""Drawing views: keyed by row and view, spread as torchvision's; and the contract that a column carries."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.soft_labels import soft_label_type
from stillroom.views import VIEW_TYPE, ViewPolicy, check_contract, contract_of, draw_views, identity_views, label_of, view_contract, views_field

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


def nearest(starts_B, sizes_B, side):
    """A resize kernel that takes the nearest pixel: what a library's changed default would be."""
    at = starts_B[:, None] + (2 * np.arange(side) + 1) * sizes_B[:, None] // (2 * side)
    return at[..., None], np.full((*at.shape, 1), 2**16, np.int32)


@pytest.mark.parametrize(
    "name, kernel",
    [
        ("_taps", nearest),
        ("_between", lambda first, second, fraction: first << 11),
        ("_cosine_sine", lambda angle: (np.cos(angle / 5729.0), np.sin(angle / 5729.0))),
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
