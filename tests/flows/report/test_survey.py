"""What the report counts and picks, against brute force over the whole table."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flows.report.survey as module
from flows.report.survey import NO_LABEL, find_rows, survey, survey_removed
from stillroom.fields import label_field
from stillroom.repeats import hashed
from stillroom.tables import MemoryTable


def table(labels, *, splits=None, synthetic=None, ids=None):
    ids = ids or [f"sample {row}" for row in range(len(labels))]
    columns = {"sample_id": pa.array(ids, pa.string()), "label_name": pa.array(labels, pa.string())}
    if splits is not None:
        columns["split"] = pa.array(splits, pa.string())
    if synthetic is not None:
        columns["synthetic"] = pa.array(synthetic, pa.bool_())
    return MemoryTable(pa.table(columns))


def hash_of(sample_id):
    return hashed(pl.Series([sample_id]))[0]


def removed(*rows):
    return MemoryTable(pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(("sample_id", "source", "reason", "kind"))}))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "test"]), st.booleans()), min_size=1, max_size=60))
def test_counts_are_those_of_polars(rows):
    labels, splits, synthetic = (list(column) for column in zip(*rows, strict=True))
    found = survey(table(labels, splits=splits, synthetic=synthetic), 5)
    frame = pl.DataFrame({"label": labels, "split": splits, "synthetic": synthetic})
    assert found.by_label("train", synthetic=True) == dict(frame.filter(pl.col("synthetic") & (pl.col("split") == "train"))["label"].value_counts().iter_rows())
    assert found.by_label(None) == dict(frame["label"].value_counts().iter_rows())
    assert found.of_split("test") == frame.filter(pl.col("split") == "test").height
    assert found.synthetic == sum(synthetic)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=80), st.integers(1, 12), st.integers(1, 7))
def test_picks_are_the_smallest_hashes_of_each_class_in_turn_for_any_batches(labels, count, batch_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH_ROWS", batch_rows)
        picks = survey(table(labels), count).picks
    by_class = {label: sorted((row for row, other in enumerate(labels) if other == label), key=lambda row: hash_of(f"sample {row}")) for label in set(labels)}
    in_turn = sorted(((rank, hash_of(f"sample {row}"), row) for rows in by_class.values() for rank, row in enumerate(rows)))
    assert sorted(picks) == sorted(row for _, _, row in in_turn[:count])
    assert [labels[row] for row in picks] == sorted(labels[row] for row in picks)


def test_the_same_samples_are_picked_in_whatever_order_the_rows_lie():
    ids, labels = [f"sample {row}" for row in range(300)], [str(row % 7) for row in range(300)]
    order = np.random.default_rng(0).permutation(300)
    shuffled = table([labels[row] for row in order], ids=[ids[row] for row in order])
    assert [ids[row] for row in survey(table(labels), 20).picks] == [ids[order[row]] for row in survey(shuffled, 20).picks]


def test_synthetic_rows_have_picks_of_their_own_beside_real_ones():
    rows = table(["a"] * 50, synthetic=[row >= 5 for row in range(50)])
    assert sum(pick < 5 for pick in survey(rows, 6).picks) == 3


def test_class_names_come_from_the_schema_in_its_order():
    schema = pa.schema([pa.field("sample_id", pa.string()), label_field(["zebra", "ant", "bee"])])
    found = survey(MemoryTable(pa.table({"sample_id": list("wxyz"), "label": [0, 1, 0, None]}, schema=schema)), 4)
    assert found.labels == ["zebra", "ant", NO_LABEL]
    assert found.by_label(None) == {"zebra": 2, "ant": 1, NO_LABEL: 1}


def test_a_table_without_labels_is_counted_as_one_class():
    found = survey(MemoryTable(pa.table({"sample_id": ["x", "y"]})), 4)
    assert (found.rows, found.labels, sorted(found.picks)) == (2, [NO_LABEL], [0, 1])


def test_an_empty_table_has_no_picks():
    assert survey(table([]), 4).picks == []


def test_removed_rows_with_a_reason_of_their_own_are_one_group_and_keep_their_reasons():
    near = [(f"s{row}", f"f{row}", f"near duplicate of {row:032x}, distance {row}", "dropped") for row in range(1, 31)]
    groups = survey_removed(removed(*near, ("s0", "a.png", "broken jpeg", "rejected")), shown=3)
    assert [(group.kind, group.reason, group.rows) for group in groups] == [("dropped", "near duplicate of …, distance …", 30), ("rejected", "broken jpeg", 1)]
    smallest = sorted((row[0] for row in near), key=hash_of)[:3]
    assert [row["sample_id"] for row in groups[0].shown] == smallest
    assert all(row["reason"] == f"near duplicate of {int(row['sample_id'][1:]):032x}, distance {row['sample_id'][1:]}" for row in groups[0].shown)


def test_one_reason_for_all_is_told_with_its_number():
    (group,) = survey_removed(removed(*((f"s{row}", "", "entropy above 0.5 nats", "dropped") for row in range(4))), shown=2)
    assert (group.reason, group.rows) == ("entropy above 0.5 nats", 4)


def test_words_with_digits_that_are_no_numbers_stay_in_a_reason():
    groups = survey_removed(
        removed(("a", "", "el2n: rank 12", "dropped"), ("b", "", "el2n: rank 13", "dropped"), ("c", "", "aum4: rank 13", "dropped")), shown=1
    )
    assert {group.reason for group in groups} == {"el2n: rank …", "aum4: rank 13"}


def test_more_kinds_of_reasons_than_there_is_room_for_are_counted_together():
    words = ["".join(chr(97 + (row // 26**place) % 26) for place in range(3)) for row in range(1_200)]
    groups = survey_removed(removed(*((f"s{row}", "", word, "dropped") for row, word in enumerate(words))), shown=1)
    assert sum(group.rows for group in groups) == 1_200
    assert groups[0].reason == "other reasons" and groups[0].rows == 700


def test_rows_are_found_by_sample_id_and_missing_ones_left_out():
    assert find_rows(table(["a"] * 9), ["sample 7", "nobody", "sample 0"]) == {"sample 0": 0, "sample 7": 7}
