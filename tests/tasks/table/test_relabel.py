"""table.relabel: labels change where the CSV says so, and what it says in vain is reported."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stillroom.errors import InputError
from stillroom.fields import label_field, label_names
from stillroom.tables import MemoryTable
from tasks.table.relabel import RelabelParams, relabel

NAMES = ["cat", "dog", "emu"]
SCHEMA = pa.schema([("sample_id", pa.string()), label_field(NAMES), ("label_name", pa.string()), ("source", pa.string())])
ROWS = pa.table([["a", "b", "c"], [0, 1, 2], NAMES, ["cat/a.png", "dog/b.png", "emu/\u09951.png"]], schema=SCHEMA)


def corrected(folder: Path, text: str, table: pa.Table = ROWS, **params: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    file = folder / "corrections.csv"
    file.write_text(text, encoding="utf-8")
    checked = RelabelParams(file=file, **params)
    metrics: dict[str, Any] = {}
    state = relabel.setup({"samples": MemoryTable(table)}, checked, metrics)
    # One row at a time: a row doesn't depend on its batch.
    batches = [relabel(batch, checked, state).batch for batch in table.to_batches(max_chunksize=1)]
    return pa.Table.from_batches(batches).to_pylist(), metrics


def test_labels_change_by_source_and_keep_the_earlier_one(tmp_path):
    rows, metrics = corrected(tmp_path, "source,label_name\ncat/a.png,emu\nemu/\u09951.png,emu\n")
    assert rows == [
        {"sample_id": "a", "label": 2, "label_name": "emu", "label_before": 0},
        {"sample_id": "b", "label": 1, "label_name": "dog", "label_before": None},
        {"sample_id": "c", "label": 2, "label_name": "emu", "label_before": None},
    ]
    assert metrics == {"corrections": 2, "unmatched": 0, "unmatched_first": []}


def test_labels_change_by_id_and_index(tmp_path):
    # With the byte order mark and line ends of a spreadsheet, and a column of notes.
    rows, _ = corrected(tmp_path, "\ufeffnote,sample_id,label\r\nblurred,b,0\r\n", by="sample_id")
    assert [(row["label"], row["label_before"]) for row in rows] == [(0, None), (0, 1), (2, None)]


def test_a_row_without_a_label_gets_one(tmp_path):
    table = pa.table([["a"], pa.array([None], pa.int64()), pa.array([None], pa.string()), ["x"]], schema=SCHEMA)
    assert corrected(tmp_path, "source,label\nx,1\n", table)[0] == [{"sample_id": "a", "label": 1, "label_name": "dog", "label_before": None}]


def test_lines_that_match_no_row_are_reported(tmp_path):
    text = "source,label\ncat/a.png,1\n" + "".join(f"gone{line},1\n" for line in range(12))
    rows, metrics = corrected(tmp_path, text)
    assert rows[0]["label"] == 1
    assert metrics == {"corrections": 13, "unmatched": 12, "unmatched_first": [f"gone{line}" for line in range(10)]}
    with pytest.raises(InputError, match=r"12 of 13 lines match no row: gone0, .* …; correct them, or raise max_unmatched"):
        corrected(tmp_path, text, max_unmatched=11)


def test_a_csv_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"1 of 1 lines match no row: a; is `by` right\?"):
        corrected(tmp_path, "source,label\na,1\n")


def test_an_empty_list_of_corrections_changes_nothing(tmp_path):
    rows, metrics = corrected(tmp_path, "source,label\n")
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert metrics["corrections"] == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("source,label_name\ncat/a.png,cow\n", "line 2: label_name 'cow' is no class; classes are cat, dog, emu"),
        ("source,label\ncat/a.png,3\n", "line 2: label '3' is no class; labels go from 0 to 2"),
        ("source,label\ncat/a.png,-1\n", "line 2: label '-1' is no class"),
        ("source,label\ncat/a.png,1\ndog/b.png,1\ncat/a.png,2\n", "line 4: 'cat/a.png' has another label in line 2"),
        ("source,label\ncat/a.png\n", "line 2: label is missing"),
        ("path,label\na,1\n", "has the columns path, label; needed are 'source', and 'label' or 'label_name'"),
        ("source,label,label_name\na,1,cat\n", "needed are 'source', and 'label' or 'label_name'"),
        ("", r"has the columns \(none\)"),
        ('source,label\n"cat,1\n', "is no CSV in UTF-8"),
    ],
)
def test_a_faulty_csv_is_one_clear_error(tmp_path, text, problem):
    with pytest.raises(InputError, match=problem):
        corrected(tmp_path, text)


def test_labels_without_names_can_not_be_corrected(tmp_path):
    with pytest.raises(InputError, match="has no class names"):
        corrected(tmp_path, "source,label\na,1\n", ROWS.replace_schema_metadata().cast(pa.schema([pa.field(field.name, field.type) for field in SCHEMA])))


def test_the_class_names_stay_on_both_columns(tmp_path):
    added = relabel.added(RelabelParams(file=tmp_path), {"samples": SCHEMA})
    assert label_names(pa.schema([added["label"]])) == NAMES
    assert label_names(pa.schema([added["label_before"]]), "label_before") == NAMES
