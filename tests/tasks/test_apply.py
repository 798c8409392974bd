"""stillroom.apply: the operators of a recipe on a frame, with the outcome that a build has."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from flows.plan import make_plan
from stillroom.errors import InputError
from stillroom.images import encode_png
from stillroom.stored import StoredTable
from stillroom.stores import Store
from tasks.apply import Applied, apply
from tasks.engine import run_stage
from tasks.pool import Pool


def grey(level: int) -> bytes:
    return encode_png(np.full((4, 4, 1), level, np.uint8))


FRAME = pl.DataFrame(
    {"sample_id": ["a", "b", "c", "d"], "image": [grey(1), grey(2), grey(1), b"no image"], "label": [0, 1, 0, 1], "source": ["A", "B", "C", "D"]}
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    found = Pool(1)
    yield found
    found.close()


def removed(found: Applied) -> list[tuple]:
    return found.removed.rows()


def test_a_row_operator_rejects_with_a_reason():
    found = apply("filter.decodable", FRAME)
    assert found.kept["sample_id"].to_list() == ["a", "b", "c"]
    assert [(name, source, kind) for name, source, _, kind in removed(found)] == [("d", "D", "rejected")]
    assert found.removed.columns == ["sample_id", "source", "reason", "kind"]


def test_a_select_operator_drops_with_a_reason():
    found = apply("filter.exact_duplicates", FRAME)
    assert removed(found) == [("c", "C", "exact duplicate of a", "dropped")]
    assert found.kept["label"].to_list() == [0, 1, 1]


def test_a_select_operator_that_finds_a_fault_rejects():
    frame = pl.DataFrame({"sample_id": ["a", "b", "c"], "label": [0, 0, 0], "el2n": [0.5, None, 0.1]})
    found = apply("prune.by_score", frame, score="el2n", order="easiest", keep_rows=1)
    assert [(name, kind) for name, _, kind in removed(found)] == [("a", "dropped"), ("b", "rejected")]
    assert found.kept["sample_id"].to_list() == ["c"]


def test_added_columns_stand_in_the_rows_that_stay():
    tagged = apply("filter.exact_duplicates", FRAME, mode="tag")
    assert tagged.kept.select("sample_id", "duplicate_of").rows() == [("a", None), ("b", None), ("c", "a"), ("d", None)]
    assert tagged.removed.height == 0


def test_what_an_operator_needs_first_is_done_first():
    noise_HW = np.random.default_rng(0).integers(0, 200, (32, 32))
    images = [encode_png(pixels_HW.astype(np.uint8)[:, :, None]) for pixels_HW in (noise_HW, noise_HW.T, noise_HW + 3)]
    found = apply("filter.near_duplicates", pl.DataFrame({"sample_id": ["a", "b", "c"], "image": images}))
    assert found.removed.select("sample_id", "kind").rows() == [("c", "dropped")]
    assert "phash" in found.kept.columns


def test_a_score_stands_beside_its_row():
    sound = FRAME.filter(pl.col("sample_id") != "d")
    found = apply("score.embed", sound, net="pixels", side_px=2, channels=1)
    assert found.kept["sample_id"].to_list() == ["a", "b", "c"]
    first, second, third = found.kept["embedding"].to_list()
    assert list(first) == list(third) != list(second)


def test_another_choice_is_an_input():
    drawn = apply("prune.random_like", FRAME, inputs={"like": FRAME.head(2)})
    assert sorted(drawn.kept["label"]) == [0, 1]


def test_arrow_tables_and_frames_without_ids_are_taken():
    table = pa.table({"image": [grey(1), grey(1)]})
    found = apply("filter.exact_duplicates", table)
    assert (found.kept["sample_id"].to_list(), found.removed["sample_id"].to_list()) == (["0"], ["1"])


def test_seeds_draw_differently_and_repeat():
    frame = pl.DataFrame({"sample_id": [f"{row}" for row in range(50)], "label": [0] * 50})

    def drawn(seed: int) -> list[str]:
        return apply("prune.random", frame, seed=seed, keep_rows=10).kept["sample_id"].to_list()

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("operator", "params", "told"),
    [
        ("filter.exact_duplicates", {"mod": "tag"}, r"apply\('filter.exact_duplicates'\): mod: unknown word.*mode"),
        (
            "prune.by_score",
            {"score": "el2n", "order": "easiest", "keep_rows": 1},
            r"apply\('prune.by_score'\): the frame has no column 'el2n'; it has sample_id",
        ),
        ("ingest.digits", {}, r"apply\('ingest.digits'\): is a source and gives no rows back"),
    ],
)
def test_what_can_not_be_is_one_line(operator, params, told):
    with pytest.raises(InputError, match=told) as error:
        apply(operator, FRAME, **params)
    assert "\n" not in str(error.value)


def test_the_outcome_is_the_engines(tmp_path, recipe, store, pool):
    for row, level in enumerate([5, 7, 5, 9, 7, 5]):
        file = tmp_path / "images" / "ab"[level % 2] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(grey(level))
    text = """name: greys
seed: 4
stages:
  raw: {op: ingest.image_folder, path: images, id: path}
  single: {op: filter.exact_duplicates, from: raw}
  drawn: {op: prune.random, from: parts.train, keep_rows: 2, balance: none}
  parts: {op: table.split, from: raw, validation: 0, test: 0}
"""
    records: dict = {}
    plan = make_plan(recipe(text), store)
    for planned in plan.stages:
        records[planned.name] = run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
    built = {name: StoredTable(Store(store), record.table).frame() for name, record in records.items()}
    left = {name: StoredTable(Store(store), record.removed).frame() for name, record in records.items() if record.removed}
    source = StoredTable(Store(store), records["raw"].table)
    raw = pl.DataFrame(source.take(np.arange(source.rows)))
    single = apply("filter.exact_duplicates", raw)
    assert single.kept.drop("image").equals(built["single"])
    assert single.removed.equals(left["single"].select("sample_id", "source", "reason", "kind"))
    assert single.removed.height == 3
    split = apply("table.split", raw, seed=4, validation=0, test=0)
    assert split.kept.drop("image").equals(built["parts"])
    assert apply("prune.random", split.kept, seed=4, keep_rows=2, balance="none").kept.drop("image").equals(built["drawn"])


def test_is_the_public_one():
    import stillroom

    assert stillroom.apply is apply
