"""diff against a comparison row by row in Python, on small random tables, and by hand on some."""

import math
from collections import Counter
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flows.history.diff import Diff, SplitDiff, diff
from stillroom.fields import HEAVY, label_field
from stillroom.snapshots import Snapshot
from stillroom.stores import Store
from stillroom.tables import MemoryTable

SPLITS = ("train", "validation", "test")
NAMES = ["cat", "dog", "owl"]
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("split", pa.string()),
        label_field(NAMES),
        pa.field("score", pa.float32()),
        pa.field("note", pa.string()),
        pa.field("views", pa.list_(pa.struct([("x", pa.int16()), ("p", pa.list_(pa.float16(), 2))]))),
        pa.field("image", pa.binary(), metadata={HEAVY: b"image"}),
        pa.field("image_hash", pa.binary(16)),
    ]
)
VALUES = {
    "label": st.sampled_from([0, 1, 2, None]),
    "score": st.sampled_from([0.0, -0.0, 0.5, math.nan, math.inf, None]),
    "note": st.sampled_from(["", "a", "ä", None]),
    "views": st.none()
    | st.lists(st.fixed_dictionaries({"x": st.sampled_from([0, 1, None]), "p": st.sampled_from([[0.0, 1.0], [1.0, 0.0], None])}), max_size=2),
    "image_hash": st.sampled_from([b"0" * 16, b"1" * 16, None]),
}
ROWS = st.dictionaries(st.sampled_from("abcdefgh"), st.fixed_dictionaries({"split": st.sampled_from(SPLITS), **VALUES}), max_size=8)


class Held(Snapshot):
    """A snapshot whose table is in memory."""

    def __init__(self, table: pa.Table, number: int = 1, roots: dict[str, str] | None = None) -> None:
        counts = Counter(table["split"].to_pylist())
        splits = {split: counts[split] for split in SPLITS if counts[split]}
        usual = {"name": "pets", "number": number, "created": "2026-11-25T04:30:00+00:00", "rows": table.num_rows, "digest": str(number), "splits": splits}
        super().__init__(Store("/nowhere"), {**usual, "table": {"columns": roots or {}}, "stages": [], "trial": False, "seed": 7})
        self.held = MemoryTable(table)

    def table(self, split: str | None = None) -> Any:
        return self.held


def table(rows: dict[str, dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist([{"sample_id": sample_id, **row} for sample_id, row in rows.items()], schema)


def compared(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Diff:
    return diff(Held(table(before), 1), Held(table(after), 2))


def differs(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return False
    return bool(one != other)


@given(ROWS, ROWS)
def test_every_number_is_that_of_a_loop_over_the_rows(before, after):
    found = compared(before, after)
    both = set(before) & set(after)
    changed = {name: {one for one in both if differs(before[one].get(name), after[one].get(name))} for name in VALUES}
    touched = set().union(*changed.values())
    for line in found.splits:
        ours = {one for one in after if after[one]["split"] == line.split}
        theirs = {one for one in before if before[one]["split"] == line.split}
        stayed = ours & theirs
        expected = SplitDiff(
            line.split, len(theirs), len(ours), len(stayed - touched), len(stayed & touched), len(ours - set(before)), len(theirs - set(after)),
            len(ours & both - theirs), len(theirs & both - ours),
        )  # fmt: skip
        assert line == expected
        assert line.before == line.same + line.changed + line.removed + line.moved_out
        assert line.after == line.same + line.changed + line.added + line.moved_in
    assert {column.column: column.rows for column in found.columns} == {name.removesuffix("_hash"): len(ids) for name, ids in changed.items() if ids}
    assert {(move.before, move.after): set(move.examples) for move in found.moves} == {
        (start, stop): ids
        for start in SPLITS
        for stop in SPLITS
        if start != stop and (ids := {one for one in both if (before[one]["split"], after[one]["split"]) == (start, stop)})
    }
    assert (set(found.added), set(found.removed), set(found.changed)) == (set(after) - both, set(before) - both, touched)
    named = [(NAMES[row["label"]] if row["label"] is not None else "(no label)" for row in (before[one], after[one])) for one in both]
    assert {(line.before, line.after): line.rows for line in found.labels} == Counter(pair for pair in map(tuple, named) if pair[0] != pair[1])
    for line in found.balance:
        for place, rows in ((0, before), (1, after)):
            counts = Counter(NAMES[row["label"]] if row["label"] is not None else "(no label)" for row in rows.values() if row["split"] == line.split)
            assert {one.label: (one.before, one.after)[place] for one in line.classes if (one.before, one.after)[place]} == counts


def column(**columns: Any) -> pa.Table:
    """Rows a, b, c … of train with these columns."""
    rows = len(next(iter(columns.values())))
    return pa.table({"sample_id": list("abcdefgh"[:rows]), "split": ["train"] * rows, **columns})


def test_a_number_of_another_type_is_the_same_number():
    found = diff(Held(column(n=pa.array([1, 2, 3], pa.int32()))), Held(column(n=pa.array([1.0, 2.5, 3.0], pa.float64())), 2))
    (line,) = found.columns
    assert (line.rows, line.types, [(one.sample_id, one.before, one.after) for one in line.examples]) == (1, ("int32", "double"), [("b", 2, 2.5)])


def test_large_whole_numbers_are_compared_exactly():
    found = diff(Held(column(n=pa.array([2**62, 7], pa.int64()))), Held(column(n=pa.array([2**62 + 1, 7], pa.uint64())), 2))
    assert [line.rows for line in found.columns] == [1]


def test_text_and_numbers_are_never_equal():
    found = diff(Held(column(n=pa.array([1, None, None]))), Held(column(n=pa.array(["1", None, "x"])), 2))
    assert [line.rows for line in found.columns] == [2]


def test_how_text_is_encoded_makes_no_difference():
    plain, encoded = pa.array(["x", "y", None]), pa.array(["x", "y", None]).dictionary_encode()
    assert [line.rows for line in diff(Held(column(n=plain)), Held(column(n=encoded), 2)).columns] == [0]
    assert diff(Held(column(n=plain)), Held(column(n=plain.cast(pa.large_string())), 2)).total.same == 3


def test_labels_are_compared_by_name_where_the_classes_are_others():
    def labelled(names: list[str], labels: list[int]) -> pa.Table:
        field = label_field(names)
        return column(label=labels).set_column(2, field, pa.array(labels, field.type))

    found = diff(Held(labelled(["cat", "owl"], [0, 1, 1])), Held(labelled(["ant", "cat", "owl"], [1, 2, 0]), 2))
    assert [(line.before, line.after, line.rows) for line in found.labels] == [("owl", "ant", 1)]
    assert [(line.column, line.rows) for line in found.columns] == [("label", 1)]


def test_columns_that_one_side_has_are_named():
    found = diff(Held(column(n=[1, 2], old=[1, 2])), Held(column(n=[1, 2], new=["x", "y"]), 2))
    assert (found.only_before, found.only_after, found.columns) == (["old"], ["new"], [])


def test_equal_digests_of_columns_spare_reading_them(monkeypatch):
    roots = {"sample_id": "i", "split": "s", "n": "same", "m": "one"}
    before = Held(column(n=[1, 2], m=[1, 2]), 1, roots)
    after = Held(column(n=[1, 2], m=[1, 3]), 2, roots | {"m": "other"})
    read: list[str] = []
    frame = MemoryTable.frame
    monkeypatch.setattr(MemoryTable, "frame", lambda self, columns=None: (read.extend(columns or []), frame(self, columns))[1])
    found = diff(before, after)
    assert [(line.column, line.rows) for line in found.columns] == [("m", 1)]
    assert "n" not in read and "sample_id" not in read


def test_examples_are_spread_over_the_classes():
    many = pa.table({"sample_id": [f"{row:03}" for row in range(100)], "split": ["train"] * 100, "label_name": ["cat"] * 95 + ["dog"] * 5})
    found = diff(Held(many.slice(0, 0)), Held(many, 2))
    assert sum(int(one) >= 95 for one in found.added) == 5


def test_a_snapshot_without_pictures_or_labels_is_compared_too():
    found = diff(Held(column(n=[1, 2])), Held(column(n=[1, 2]), 2))
    assert (found.total.same, found.balance, found.labels) == (2, [], [])
