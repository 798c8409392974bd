"""reinforce.views: views without a teacher, drawn as those with one, inside the cells of mosaics; and the trainer replays them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import stillroom
from stillroom.datasets import TorchSplit
from stillroom.errors import StageError
from stillroom.fields import image_field, label_field
from stillroom.images import decode_batch, encode_png
from stillroom.operators import Draw
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, check_contract, draw_views, label_of, replay
from tasks.reinforce.views import ViewsParams, adds, setup, views
from tasks.train._arm import load_stored

DRAW = Draw(7, "reinforce.views")


def samples(rows: int = 12, side: int = 8, grids: list[int | None] | None = None) -> MemoryTable:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, side, side, 1), dtype=np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["cat", "dog", "owl"])])
    table = pa.table([[f"s{row}" for row in range(rows)], [encode_png(image) for image in pixels], [row % 3 for row in range(rows)]], schema=schema)
    return MemoryTable(table if grids is None else table.append_column("mosaic_grid", pa.array(grids, pa.int8())))


def run(table: MemoryTable, params: ViewsParams, part: slice = slice(None)) -> pa.ListArray:
    batch = table.take(range(table.rows)[part]).combine_chunks().to_batches()[0]
    rows = views(batch, params, setup({"samples": table}, params), DRAW)
    assert rows.dropped is None and rows.rejected is None
    return rows.batch["views"]


def with_views(table: MemoryTable, params: ViewsParams) -> MemoryTable:
    return MemoryTable(table.table.append_column(adds(params, {"samples": table.schema})["views"], run(table, params)))


def test_views_are_those_that_the_policy_draws():
    params = ViewsParams(count=3, policy=["crop", "flip"], side_px=6, crop_scale=[0.3, 0.9])
    drawn = run(samples(), params)
    policy = ViewPolicy(kinds=("crop", "flip"), side_px=6, crop_scale=(0.3, 0.9))
    assert drawn.to_pylist() == draw_views(policy, [f"s{row}" for row in range(12)], np.full((12, 2), 8), DRAW, 3).to_pylist()
    field = adds(params, {"samples": samples().schema})["views"]
    assert drawn.type == field.type and check_contract(field)["side_px"] == 6 and label_of(field) == {"kind": "hard"}


def test_rows_that_are_mosaics_have_views_of_single_cells():
    table, asked = samples(40, grids=[2, None] * 20), {"count": 8, "policy": ["crop"], "crop_scale": [0.9, 1.0]}
    drawn = run(table, ViewsParams(**asked)).to_pylist()
    for row, of_row in enumerate(drawn):
        for view in of_row:
            largest = 4 if row % 2 == 0 else 8
            assert view["crop_h"] <= largest and view["crop_w"] <= largest
            assert view["crop_y"] // largest == (view["crop_y"] + view["crop_h"] - 1) // largest
    assert stillroom.apply("reinforce.views", table.table, seed=7, **asked).kept["views"].to_list() == drawn


@given(st.integers(1, 11))
def test_a_row_does_not_depend_on_its_batch(cut):
    table, params = samples(grids=[1, 2, 4] * 4), ViewsParams(count=3)
    assert run(table, params, slice(cut)).to_pylist() + run(table, params, slice(cut, None)).to_pylist() == run(table, params).to_pylist()


def test_the_trainer_gets_each_view_with_its_rows_own_label():
    params = ViewsParams(count=3, policy=["crop"], side_px=5)
    table = with_views(samples(grids=[2] * 12), params)
    expected = replay(
        np.repeat(decode_batch(table.table["image"].to_pylist()), 3, axis=0), table.table["views"].combine_chunks().values, {"kernel": 1, "side_px": 5}
    )
    split, seen = TorchSplit(table, views="stored", pixels="uint8"), []
    for epoch in range(3):
        split.set_epoch(epoch)
        items = [split[row] for row in range(12)]
        assert all("soft_label" not in item for item in items) and [int(item["label"]) for item in items] == [row % 3 for row in range(12)]
        seen.append([item["image"].numpy() for item in items])
    for row in range(12):
        assert sorted(epoch[row].tobytes() for epoch in seen) == sorted(image.tobytes() for image in expected[3 * row : 3 * row + 3])


def test_a_student_is_shown_the_same_pixels_and_labels(tmp_path):
    table = with_views(samples(grids=[2] * 12), ViewsParams(count=3, policy=["crop"], side_px=5))
    arm = load_stored(table, tmp_path, None, None, epochs=9)
    structs = table.table["views"].combine_chunks().values
    expected = replay(np.repeat(decode_batch(table.table["image"].to_pylist()), 3, axis=0), structs, {"kernel": 1, "side_px": 5})
    assert (arm.pixels_VNCSS == expected.reshape(12, 3, 1, 5, 5).swapaxes(0, 1)).all()
    images, targets = arm.batches(12, "order", Draw(0, "train.student"))(2)
    assert targets.dtype == torch.int64
    for image, target in zip(images.numpy(), targets.tolist(), strict=True):
        (row,) = (row for row in range(12) if (arm.pixels_VNCSS[2, row] == image).all())
        assert target == row % 3


def test_an_image_that_does_not_fit_is_named():
    odd = MemoryTable(pa.concat_tables([samples().table, samples(1, side=9).table]))
    with pytest.raises(StageError, match="sample 's0' has 9x9 px, the first has 8x8; give views a side_px"):
        run(odd, ViewsParams())
    assert len(run(odd, ViewsParams(side_px=8))) == 13
    broken = MemoryTable(odd.table.set_column(1, odd.schema.field("image"), [[b"no image", *odd.table["image"].to_pylist()[1:]]]))
    with pytest.raises(StageError, match=r"sample 's0': not an image.*filter.decodable"):
        run(broken, ViewsParams(side_px=8))
    with pytest.raises(StageError, match="sample 's3': a grid of 9 cells a side on 8x8 px; 'mosaic_grid' should be a column that distill.pca made"):
        run(samples(grids=[1, 2, 8, *[9] * 9]), ViewsParams())


def test_policies_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="would all be the same"):
        ViewsParams(policy=["identity"])
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ViewsParams(top_k=3)
