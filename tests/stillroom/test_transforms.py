"""Transforms that a net tells beside the class: as NumPy makes them, told of stored views, and learnt as one label with it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.datasets import TorchSplit
from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.streams import stream
from stillroom.tables import MemoryTable
from stillroom.train import aggregated, joint_label
from stillroom.transforms import COUNTS, transformed, transforms_of
from stillroom.views import HARD_LABEL, ViewPolicy, draw_views, view_contract, views_field

ROWS, VIEWS = 12, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 5, 5), dtype=np.uint8)
ORDERS = ["rgb", "rbg", "grb", "gbr", "brg", "bgr"]


def shown(pixels_CHW: np.ndarray, turns: int, permutation: int) -> np.ndarray:
    """By NumPy: turned counter-clockwise, then its channels in the order of a word."""
    return np.rot90(pixels_CHW, turns, axes=(1, 2))[["rgb".index(letter) for letter in ORDERS[permutation]]]


def split(*kinds: str, without: int | None = None) -> MemoryTable:
    """Rows r0, r1, … with views of these kinds and no more; row `without` has none."""
    ids, policy = [f"r{row}" for row in range(ROWS)], ViewPolicy(kinds=kinds)
    views = draw_views(policy, ids, np.tile([5, 5], (ROWS, 1)), Draw(0, "test"), VIEWS)
    if without is not None:
        views = pa.array([None if row == without else view for row, view in enumerate(views.to_pylist())], views.type)
    fields = [pa.field("sample_id", pa.string()), image_field(), label_field(["a", "b"]), views_field(view_contract(policy), None, HARD_LABEL)]
    images = [encode_png(pixels.transpose(1, 2, 0)) for pixels in PIXELS]
    return MemoryTable(pa.table([ids, images, [row % 2 for row in range(ROWS)], views], schema=pa.schema(fields)))


def test_they_are_those_of_numpy_and_the_first_changes_nothing():
    for transform in range(4):
        assert np.array_equal(transformed(PIXELS, "quarter_turns", transform), [shown(pixels, transform, 0) for pixels in PIXELS])
    for transform in range(6):
        assert np.array_equal(transformed(PIXELS, "permutation", transform), [shown(pixels, 0, transform) for pixels in PIXELS])
    assert COUNTS == {"quarter_turns": 4, "permutation": 6}


@pytest.mark.parametrize(
    ("kinds", "parts"),
    [
        (("quarter_turns",), lambda transform: (transform, 0)),
        (("permutation",), lambda transform: (0, transform)),
        (("quarter_turns", "permutation"), lambda transform: divmod(transform, 6)),
    ],
)
def test_a_batch_says_which_one_each_image_shows(kinds, parts):
    seen = set()
    for epoch in range(VIEWS):
        table = TorchSplit(split(*kinds, without=3), views="stored", pixels="uint8")
        table.set_epoch(epoch)
        batches = stream(split(*kinds, without=3), batch_size=ROWS, views="stored", pixels="uint8", shuffle=False)
        batches.set_epoch(epoch)
        (batch,) = batches
        assert batch["transform"].dtype == torch.int64
        for row, item in enumerate(table):
            assert batch["transform"][row] == item["transform"]
            assert torch.equal(batch["image"][row], item["image"])
            assert np.array_equal(item["image"], shown(PIXELS[row], *parts(int(item["transform"]))))
        assert batch["transform"][3] == 0 and np.array_equal(batch["image"][3], PIXELS[3])  # no views: as it is
        seen |= set(batch["transform"].tolist())
    assert len(seen) >= 4


def test_other_views_have_none():
    assert transforms_of(split("flip").table["views"].combine_chunks().values) is None
    (batch,) = stream(split("flip"), batch_size=ROWS, views="stored")
    assert "transform" not in batch
    with pytest.raises(InputError, match=r"columns=\['transform'\]: a batch has them anyway"):
        stream(split("flip"), batch_size=ROWS, views="stored", columns=["transform"])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1))
def test_a_joint_label_is_class_and_transform(pairs):
    label_B, transform_B = torch.tensor(pairs).T
    joint_B = joint_label(label_B, transform_B, 6)
    assert torch.equal(joint_B // 6, label_B) and torch.equal(joint_B % 6, transform_B)


def test_the_aggregate_is_the_mean_of_each_transforms_own_columns():
    # Two transforms, three classes, one image: columns (class 0, t 0), (class 0, t 1), (class 1, t 0), …
    logits = torch.tensor([[[1.0, 9, 3, 9, 5, 9]], [[9.0, 2, 9, 4, 9, 9]]])
    assert aggregated(logits).tolist() == [[1.5, 3.5, 7.0]]
