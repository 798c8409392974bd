"""table.sample: so many rows, each class in proportion, whatever the order of the rows."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from stillroom.operators import Draw
from tasks.table.sample import SampleParams, sample


def samples(labels: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"{place:04}" for place in range(len(labels))], "label": labels}, schema_overrides={"label": pl.Int64})


def kept(frame: pl.DataFrame, rows: int, seed: int = 0) -> pl.DataFrame:
    reasons = sample({"samples": frame}, SampleParams(rows=rows), Draw(seed, "table.sample"))["reason"]
    assert set(reasons.drop_nulls()) <= {f"not among the {rows} rows of the trial"}
    return frame.filter(reasons.is_null())


@given(labels=st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=80), rows=st.integers(1, 90), seed=st.integers(0, 3))
def test_exactly_so_many_rows_and_no_class_is_off_its_share_by_more_than_one(labels, rows, seed):
    frame = samples(labels)
    found = kept(frame, rows, seed)
    assert found.height == min(rows, len(labels))
    for label in set(labels):
        share = found.height * labels.count(label) / len(labels)
        assert abs(found["label"].to_list().count(label) - share) <= 1


def test_the_order_of_rows_does_not_count():
    frame = samples([0, 1, 2] * 30)
    assert set(kept(frame.reverse(), 20)["sample_id"]) == set(kept(frame, 20)["sample_id"])


def test_another_seed_draws_other_rows():
    frame = samples([0] * 100)
    assert set(kept(frame, 10)["sample_id"]) != set(kept(frame, 10, seed=1)["sample_id"])


def test_without_labels_all_are_one_class():
    assert kept(samples([0] * 40).drop("label"), 7).height == 7


def test_every_row_has_the_same_chance():
    # 400 seeds draw each of 10 rows 120 times in expectation, with a standard deviation of 9.2.
    frame = samples([0] * 5 + [1] * 5)
    drawn = [name for seed in range(400) for name in kept(frame, 3, seed)["sample_id"]]
    assert all(75 < drawn.count(name) < 165 for name in frame["sample_id"])
