"""filter.exact_duplicates against the rule written out row by row."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.filter.exact_duplicates import ExactDuplicatesParams, exact_duplicates

SPLIT = st.sampled_from(["train", "validation", "test", None])
PLACES = {"test": 0, "validation": 1}


def images(*names: str | None, splits: list[str | None] | None = None) -> pl.DataFrame:
    hashes = [None if name is None else name.encode().ljust(16) for name in names]
    frame = pl.DataFrame({"sample_id": [f"sample{row}" for row in range(len(names))], "image_hash": pl.Series(hashes, dtype=pl.Binary)})
    return frame if splits is None else frame.with_columns(pl.Series("split", splits, dtype=pl.String))


def run(frame: pl.DataFrame, mode: str = "drop") -> pl.DataFrame:
    found = exact_duplicates({"samples": frame}, ExactDuplicatesParams(mode=mode))
    assert found.columns == (["reason"] if mode == "drop" else ["reason", "duplicate_of"])
    return found


def test_the_first_stays_and_the_others_name_it():
    assert run(images("a", "b", "a", "c", "b", "a"))["reason"].to_list() == [
        None,
        None,
        "exact duplicate of sample0",
        None,
        "exact duplicate of sample1",
        "exact duplicate of sample0",
    ]


def test_tagging_keeps_every_row():
    found = run(images("a", "b", "a"), mode="tag")
    assert found["reason"].to_list() == [None] * 3
    assert found["duplicate_of"].to_list() == [None, None, "sample0"]


def test_a_training_row_leaves_for_a_test_row_and_no_test_row_leaves():
    splits = ["train", "validation", "train", "test", "test", "validation"]
    assert run(images("a", "a", "b", "a", "a", "c", splits=splits))["reason"].to_list() == [
        "exact duplicate of sample3",
        "exact duplicate of sample3",
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("mode", ["drop", "tag"])
def test_ten_distinct_rows_and_an_empty_table_stay_whole(mode):
    assert run(images(*"abcdefghij"), mode)["reason"].null_count() == 10
    assert run(images(), mode).height == 0
    assert run(images(splits=[]), mode).height == 0


def test_rows_without_an_image_are_nobodys_duplicates():
    assert run(images(None, None, "a"))["reason"].null_count() == 3


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), SPLIT), max_size=25))
def test_agrees_with_the_rule(rows):
    names, splits = [name for name, _ in rows], [split for _, split in rows]
    expected = []
    for row, (name, split) in enumerate(rows):
        group = [other for other in range(len(rows)) if names[other] == name]
        first = min(group, key=lambda other: (PLACES.get(splits[other], 2), other))
        expected.append(None if name is None or first == row or split == "test" else f"exact duplicate of sample{first}")
    assert run(images(*names, splits=splits))["reason"].to_list() == expected
