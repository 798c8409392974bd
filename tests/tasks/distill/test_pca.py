"""distill.pca: the easiest of each class, each once, whole and in a cell of its own; and its views never straddle cells."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

import stillroom
from flows.build import build_recipe
from flows.history.explain import explain
from flows.resolve import resolve_text
from stillroom.draws import Draw
from stillroom.errors import InputError, RecipeErrors
from stillroom.fields import image_field, label_field, label_names
from stillroom.images import decode, encode_png
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.distill.pca import PcaParams, combine, pca

NAMES = ["cat", "dog"]
RECIPES = Path(__file__).parents[3] / "recipes"


def samples(
    scores: list[float | None], labels: list[int | None] | None = None, side: int = 4, ids: list[str] | None = None, score: str = "el2n"
) -> MemoryTable:
    """Images of one level each, 10 for row 0, 11 for row 1 …; classes by turns."""
    rows = len(scores)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(NAMES), pa.field(score, pa.float32())])
    images = [encode_png(np.full((side, side, 1), 10 + row, np.uint8)) for row in range(rows)]
    columns = [ids or [f"s{row:02}" for row in range(rows)], images, labels or [row % 2 for row in range(rows)], scores]
    return MemoryTable(pa.table(columns, schema=schema))


def made(table: MemoryTable, tmp_path, order: int = 1, **params) -> list[dict]:
    """The rows of all units; `order` -1 runs the last unit first."""
    settings = PcaParams(**{"images_per_class": 2} | params)
    fields = pca.added(settings, {"samples": table.schema})
    schema = pa.schema(list(fields.values()))
    work = Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "distill.pca"))
    units = pca.units({"samples": table}, settings)
    rows = {unit.name: [row for batch in pca(unit, {"samples": table}, settings, work, schema) for row in batch.to_pylist()] for unit in units[::order]}
    return [row for unit in units for row in rows[unit.name]]


def test_four_images_make_four_exact_quadrants(tmp_path):
    table = samples([0.3, 0.1, 0.4, 0.2], labels=[0] * 4, side=6)
    (row,) = made(table, tmp_path, images_per_class=1)
    expected = np.block([[np.full((3, 3), 11), np.full((3, 3), 13)], [np.full((3, 3), 10), np.full((3, 3), 12)]])
    assert decode(row["image"])[:, :, 0].tolist() == expected.tolist()
    assert row["parents"] == ["s01", "s03", "s00", "s02"]
    about = {"width": 6, "height": 6, "format": "png", "label": 0, "label_name": "cat", "source": "pca:cat/0", "split": "train"}
    assert {name: row[name] for name in [*about, "synthetic", "mosaic_grid"]} == about | {"synthetic": True, "mosaic_grid": 2}


@pytest.mark.parametrize("side, grid, widths", [(7, 2, [4, 3]), (8, 3, [3, 3, 2]), (5, 5, [1] * 5), (6, 1, [6])])
def test_odd_sizes_leave_no_gap_and_the_first_cells_take_the_pixel(side, grid, widths):
    levels = np.arange(1, grid * grid + 1, dtype=np.uint8)
    mosaic = combine([np.full((side, side, 1), level, np.uint8) for level in levels], grid)[:, :, 0]
    assert mosaic.tolist() == np.repeat(np.repeat(levels.reshape(grid, grid), widths, axis=0), widths, axis=1).tolist()


def test_an_image_is_down_scaled_whole():
    images = [np.random.default_rng(seed).integers(0, 256, (15, 11, 3), np.uint8) for seed in range(4)]
    mosaic = combine(images, 2, side_px=9)
    for cell, ((top, bottom), (left, right)) in enumerate([((0, 5), (0, 5)), ((0, 5), (5, 9)), ((5, 9), (0, 5)), ((5, 9), (5, 9))]):
        expected = np.asarray(Image.fromarray(images[cell]).resize((right - left, bottom - top), Image.Resampling.BILINEAR))
        assert np.abs(mosaic[top:bottom, left:right].astype(int) - expected).max() <= 2


def test_one_image_of_colour_makes_all_of_colour():
    images = [np.full((2, 2, channels), 9, np.uint8) for channels in (1, 3, 1, 1)]
    assert (combine(images, 2) == np.full((2, 2, 3), 9)).all()


scored = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=18, max_size=30)


@given(scored, st.randoms(use_true_random=False))
def test_each_class_gives_its_easiest_each_once_whatever_the_order_of_rows(tmp_path_factory, scores, random):
    table, folder = samples(scores), tmp_path_factory.mktemp("pca")
    rows = made(table, folder)
    assert [row["label"] for row in rows] == [0, 0, 1, 1]
    for label in (0, 1):
        easiest = sorted((score, f"s{row:02}") for row, score in enumerate(scores) if row % 2 == label)[:8]
        assert [parent for row in rows if row["label"] == label for parent in row["parents"]] == [sample_id for _, sample_id in easiest]
    places = list(range(len(scores)))
    random.shuffle(places)
    assert made(MemoryTable(table.table.take(places)), folder, order=-1) == rows


def test_a_smaller_budget_is_part_of_a_larger_one(tmp_path):
    table = samples(np.random.default_rng(0).uniform(0, 1, 60).tolist())
    few, many = (made(table, tmp_path, images_per_class=count) for count in (3, 7))
    assert [row for row in few if row["label"] == 0] == many[:3] and [row for row in few if row["label"] == 1] == many[7:10]
    assert len({row["sample_id"] for row in many}) == 14


def test_an_id_is_the_hash_of_what_made_the_image(tmp_path):
    table = samples([0.1] * 18)
    ids = [made(table, tmp_path, **params)[0]["sample_id"] for params in ({}, {"side_px": 8}, {"grid": 1}, {"grid": 3, "images_per_class": 1})]
    assert len(set(ids)) == 4
    other = samples([0.1] * 18, ids=[f"t{row:02}" for row in range(18)])
    assert made(other, tmp_path)[0]["sample_id"] not in ids


def test_a_score_of_which_the_low_end_is_hard(tmp_path):
    scores = np.arange(16) / 16
    assert made(samples(scores.tolist(), score="aum"), tmp_path, score="aum")[0]["parents"] == ["s14", "s12", "s10", "s08"]
    assert made(samples(scores.tolist(), score="own"), tmp_path, score="own", hard="high")[0]["parents"] == ["s00", "s02", "s04", "s06"]
    with pytest.raises(ValidationError, match="which end of 'own' is hard isn't known"):
        PcaParams(images_per_class=1, score="own")


def test_rows_without_label_or_score_take_no_part(tmp_path):
    table = samples([None, 0.1, float("nan"), *[0.2] * 13], labels=[0, None, 0, *[0] * 4, *[1] * 9])
    assert {parent for row in made(table, tmp_path, images_per_class=1) for parent in row["parents"]} == {
        "s03",
        "s04",
        "s05",
        "s06",
        "s07",
        "s08",
        "s09",
        "s10",
    }


def test_a_class_with_too_few_is_named_with_a_way_out(tmp_path):
    table = samples([0.1] * 20, labels=[0] * 14 + [1] * 6)
    with pytest.raises(InputError, match=r"class 'dog': has 6 images with a score, and 3 of 2x2 take 12; every class can give images_per_class: 1"):
        made(table, tmp_path, images_per_class=3)
    with pytest.raises(InputError, match=r"class 'dog': .* and 1 of 3x3 take 9; a smaller grid takes fewer"):
        made(table, tmp_path, images_per_class=1, grid=3)
    with pytest.raises(InputError, match="samples: none has a label and a number as its el2n"):
        made(samples([None] * 4), tmp_path)


def test_what_cannot_be_combined_is_refused(tmp_path):
    odd = [np.zeros((size, 4, 1), np.uint8) for size in (4, 4, 5, 4)]
    with pytest.raises(InputError, match="of one mosaic have 4x4 and 4x5 pixels; give side_px"):
        combine(odd, 2)
    with pytest.raises(InputError, match="of 2x2 pixels can't hold 3x3 cells"):
        made(samples([0.1] * 18, side=2), tmp_path, images_per_class=1, grid=3)
    with pytest.raises(ValidationError, match="grid: 3 cells don't fit along 2 px"):
        PcaParams(images_per_class=1, grid=3, side_px=2)
    broken = samples([0.1] * 8)
    broken = MemoryTable(broken.table.set_column(1, broken.schema.field("image"), [[*broken.table["image"].to_pylist()[:7], b"no image"]]))
    with pytest.raises(InputError, match="sample 's07': not an image.*filter.decodable"):
        made(broken, tmp_path, images_per_class=1)


def test_the_classes_keep_their_names():
    fields = pca.added(PcaParams(images_per_class=1), {"samples": samples([0.1]).schema})
    assert label_names(pa.schema([fields["label"]])) == NAMES


RECIPE = """name: small
seed: 1
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  scores: {op: score.dynamics, from: split.train, net: mlp, epochs: 1, el2n_epochs: [1], seeds: 1}
  tiled: {op: distill.pca, from: EDGE, images_per_class: 2, score: COLUMN}
"""


def test_test_rows_can_be_no_parents(tmp_path):
    graph = resolve_text(RECIPE.replace("EDGE", "scores").replace("COLUMN", "el2n"), tmp_path)
    assert graph.stages["tiled"].splits == {"train"}
    with pytest.raises(RecipeErrors, match="'split' may hold test rows, which must not reach 'distill.pca'; write `split.train`"):
        resolve_text(RECIPE.replace("EDGE", "split").replace("COLUMN", "label").replace("score: label", "score: label, hard: high"), tmp_path)
    with pytest.raises(RecipeErrors, match="'raw' was never split"):
        resolve_text(RECIPE.replace("EDGE", "raw").replace("COLUMN", "label").replace("score: label", "score: label, hard: high"), tmp_path)


QUICK = ["scores.epochs=2", "scores.el2n_epochs=[2]", "scores.seeds=1", "augmented.count=3", "proof.student.steps=2", "proof.student.seeds=2"]


@pytest.mark.server
@pytest.mark.slow
def test_the_shipped_recipe_publishes_mosaics_whose_parents_are_training_rows(tmp_path):
    result = build_recipe(RECIPES / "pca_digits.yaml", tmp_path, [*QUICK, "proof.student.tune_seeds=1", "proof.student.learning_rates=[0.01]"])
    assert result.proof is not None
    assert {"candidate.stored", "control.stored"} <= {arm["arm"] for arm in result.proof["arms"]}
    assert {arm["rows"] for arm in result.proof["arms"] if arm["arm"] != "raw.hard"} == {100}

    snapshot = stillroom.open("pca-digits@1", store=tmp_path)
    rows = pl.DataFrame(snapshot.table("train").frame())
    parents = rows.select("label", parent=pl.col("parents")).explode("parent")
    originals = stillroom.table("pca-digits.scores", store=tmp_path).frame(["sample_id", "label", "split"])
    found = parents.join(originals, left_on="parent", right_on="sample_id")
    assert found.height == parents["parent"].n_unique() == 400 and (found["label"] == found["label_right"]).all() and set(found["split"]) == {"train"}
    assert explain(snapshot, rows["sample_id"][0]).parents[0].source.startswith("digits:")

    item = snapshot.torch("train", views="stored")[0]
    assert item["image"].shape == (1, 8, 8) and "soft_label" not in item
    # The control's images are whole, and so are its views: up to the whole of 8x8, where a mosaic's cell is 8x8 of 16x16.
    control = stillroom.table("pca-digits.augmented--random", store=tmp_path).frame(["views"])["views"].explode().struct.unnest()
    assert control["crop_h"].max() == 8 and (control["crop_y"] + control["crop_h"]).max() == 8
