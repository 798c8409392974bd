"""table.relabel: correct labels from a CSV."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.fields import label_field, label_names
from stillroom.operators import Params, Rows, SourcePath, Table, row

_SHOWN = 10


class RelabelParams(Params):
    """Parameters of `table.relabel`."""

    file: SourcePath = Field(description="A CSV, UTF-8, with a header: the column that `by` names, and `label` (index) or `label_name`.")
    by: Literal["sample_id", "source"] = Field(default="source", description="What a line of the CSV and a row have in common.")
    max_unmatched: int | None = Field(default=None, ge=0, description="Fail if more lines of the CSV match no row. Left out, they are reported only.")


@dataclass(frozen=True)
class _Corrections:
    """The label by key, and the names of all classes."""

    labels: Mapping[str, int]
    names: list[str]


def _setup(inputs: Mapping[str, Table], params: RelabelParams, metrics: dict[str, Any]) -> _Corrections:
    """Read the CSV, see which of its lines match a row, and report those that don't."""
    samples = inputs["samples"]
    names = label_names(samples.schema)
    if names is None:
        raise InputError("column 'label'", "has no class names, so corrections can't be checked", "name the classes at ingest")
    labels = _read(params, names)
    keys = {key for batch in samples.scan([params.by], batch_size=65_536) for key in batch.column(0).to_pylist()}
    unmatched = [key for key in labels if key not in keys]
    problem = f"{len(unmatched):,} of {len(labels):,} lines match no row: {_listed(unmatched)}"
    if unmatched and len(unmatched) == len(labels):
        raise InputError(str(params.file), problem, "is `by` right?")
    if params.max_unmatched is not None and len(unmatched) > params.max_unmatched:
        raise InputError(str(params.file), problem, "correct them, or raise max_unmatched")
    metrics |= {"corrections": len(labels), "unmatched": len(unmatched), "unmatched_first": unmatched[:_SHOWN]}
    return _Corrections(labels, names)


def _adds(params: RelabelParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    label = schemas["samples"].field("label")
    return {"label": label, "label_name": pa.string(), "label_before": label_field(label_names(schemas["samples"]) or [], "label_before")}


@row(version=1, requires=lambda params: ["label", "label_name", *(["source"] if params.by == "source" else [])], adds=_adds, setup=_setup, keeps_rows=True)
def relabel(batch: pa.RecordBatch, params: RelabelParams, state: _Corrections) -> Rows:
    """Give rows the labels that a CSV says, and keep the earlier one in `label_before`.

    `label_before` (int64) is null where the label stayed as it was. Lines that match no row are in the
    stage's metrics: `unmatched` (how many) and `unmatched_first` (ten of them); a CSV of which no line
    matches is an error.

    Raises:
        InputError: the CSV isn't one, names a class that isn't there, or one row twice with two labels.
    """
    before = batch["label"].to_pylist()
    wanted = [state.labels.get(key, label) for key, label in zip(batch[params.by].to_pylist(), before, strict=True)]
    kept_names = batch["label_name"].to_pylist()
    names = [name if label == earlier else state.names[label] for label, earlier, name in zip(wanted, before, kept_names, strict=True)]
    columns = {
        "sample_id": batch["sample_id"],
        "label": pa.array(wanted, pa.int64()),
        "label_name": pa.array(names, pa.string()),
        "label_before": pa.array([None if label == earlier else earlier for label, earlier in zip(wanted, before, strict=True)], pa.int64()),
    }
    return Rows(pa.record_batch(columns))


def _read(params: RelabelParams, names: list[str]) -> dict[str, int]:
    """Label by key, each line checked."""
    labels: dict[str, int] = {}
    lines: dict[str, int] = {}
    try:
        with params.file.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            said = _label_column(params, reader.fieldnames or [])
            for entry in reader:
                key, text = entry[params.by], entry[said]
                if not key or text is None:
                    raise InputError(str(params.file), f"line {reader.line_num}: {params.by if not key else said} is missing")
                label = _index(params.file, reader.line_num, said, text.strip(), names)
                if labels.setdefault(key, label) != label:
                    raise InputError(str(params.file), f"line {reader.line_num}: '{key}' has another label in line {lines[key]}", "keep one of the two")
                lines.setdefault(key, reader.line_num)
    except OSError as error:
        raise InputError(str(params.file), f"can't be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(str(params.file), f"is no CSV in UTF-8: {error}") from error
    return labels


def _label_column(params: RelabelParams, header: list[str] | Any) -> str:
    found = [name for name in ("label", "label_name") if name in header]
    if params.by not in header or len(found) != 1:
        raise InputError(str(params.file), f"has the columns {', '.join(header) or '(none)'}", f"needed are '{params.by}', and 'label' or 'label_name'")
    return found[0]


def _index(file: Path, line: int, column: str, text: str, names: list[str]) -> int:
    if column == "label_name" and text in names:
        return names.index(text)
    if column == "label" and text.isdecimal() and int(text) < len(names):
        return int(text)
    known = f"classes are {_listed(names)}" if column == "label_name" else f"labels go from 0 to {len(names) - 1}"
    raise InputError(str(file), f"line {line}: {column} '{text}' is no class", known)


def _listed(words: list[str]) -> str:
    """The first ten words, and a sign that there are more."""
    return ", ".join(words[:_SHOWN]) + " …" * (len(words) > _SHOWN)
