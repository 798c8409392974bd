"""filter.near_duplicates against the rule written out row by row."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.filter import near_duplicates as module
from tasks.filter.near_duplicates import NearDuplicatesParams, near_duplicates

ROWS = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 63), max_size=4), st.sampled_from(["train", "validation", "test", None])), max_size=40)
ORDER = {"test": 0, "validation": 1}


def hashed(*hashes: int | None, splits: list[str | None] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame({"sample_id": [f"sample{place}" for place in range(len(hashes))], "phash": pl.Series(hashes, dtype=pl.UInt64)})
    return frame if splits is None else frame.with_columns(pl.Series("split", splits, dtype=pl.String))


def tagged(frame: pl.DataFrame, **params: object) -> list[tuple[str | None, int | None]]:
    found = near_duplicates({"samples": frame}, NearDuplicatesParams(mode="tag", **params))
    assert found["reason"].null_count() == frame.height
    return list(zip(found["duplicate_of"], found["duplicate_distance"], strict=True))


def by_the_rule(frame: pl.DataFrame, max_distance: int) -> list[tuple[str | None, int | None]]:
    rows = [row for row in range(frame.height) if frame["phash"][row] is not None]
    splits = frame["split"] if "split" in frame.columns else [None] * frame.height
    rows.sort(key=lambda row: ORDER.get(splits[row], 2))
    answer: list[tuple[str | None, int | None]] = [(None, None)] * frame.height
    staying: list[int] = []
    left: dict[int, int] = {}
    for row in rows:
        if frame["phash"][row] in left:
            answer[row] = answer[left[frame["phash"][row]]]
            continue
        distances = [(frame["phash"][row] ^ frame["phash"][other]).bit_count() for other in staying]
        if not distances or min(distances) > max_distance or splits[row] == "test":
            staying.append(row)
        else:
            answer[row] = (frame["sample_id"][staying[distances.index(min(distances))]], min(distances))
            left[frame["phash"][row]] = row
    return answer


def test_drops_the_later_one_and_names_the_one_that_stays():
    found = near_duplicates({"samples": hashed(0b1111, 0b0111, 1 << 40)}, NearDuplicatesParams(max_distance=1))
    assert found["reason"].to_list() == [None, "near duplicate of sample0, 1 of 64 bits differ", None]
    assert found.columns == ["reason"]


def test_a_chain_does_not_join_what_differs():
    # Neighbours differ in 2 bits, ends in 4: the third resembles the second alone, which leaves.
    assert tagged(hashed(0b0000, 0b0011, 0b1111), max_distance=2) == [(None, None), ("sample0", 2), (None, None)]


def test_names_the_nearest_of_those_that_stay_and_the_first_of_equals():
    assert tagged(hashed(0b1110000, 0b0000111, 0b0000011), max_distance=5)[2] == ("sample1", 1)
    assert tagged(hashed(0b110000, 0b000011, 0b010001), max_distance=3)[2] == ("sample0", 2)


def test_flat_pictures_are_no_duplicates_of_each_other():
    assert tagged(hashed(None, None, 5, 5)) == [(None, None), (None, None), (None, None), ("sample2", 0)]


def test_a_test_row_never_leaves_and_takes_its_twins_in_train_with_it():
    frame = hashed(7, 7, 7, 7, 7, splits=["train", "validation", "test", "test", "train"])
    found = near_duplicates({"samples": frame}, NearDuplicatesParams())["reason"].to_list()
    assert found == ["near duplicate of sample2, 0 of 64 bits differ"] * 2 + [None, None] + ["near duplicate of sample2, 0 of 64 bits differ"]


def test_distinct_pictures_all_stay():
    frame = hashed(*np.random.default_rng(0).integers(0, 2**64, 10, np.uint64).tolist())
    assert near_duplicates({"samples": frame}, NearDuplicatesParams())["reason"].to_list() == [None] * 10


@pytest.mark.parametrize("together", [1, 3, 2048])
@given(rows=ROWS, max_distance=st.integers(0, 16), with_splits=st.booleans())
def test_agrees_with_the_rule_row_by_row(together, rows, max_distance, with_splits):
    stems = np.random.default_rng(1).integers(0, 2**64, 2, np.uint64).tolist()
    hashes = [None if stem == 2 else stems[stem] ^ sum({1 << bit for bit in flips}) for stem, flips, _ in rows]
    frame = hashed(*hashes, splits=[split for *_, split in rows] if with_splits else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOGETHER", together)
        assert tagged(frame, max_distance=max_distance) == by_the_rule(frame, max_distance)
