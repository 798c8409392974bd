"""Rows on their way from an operator to fragments: references made, removed rows set aside, all accounted for."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.errors import StageError
from stillroom.fields import heavy_kind, heavy_names
from stillroom.operators import Rows
from stillroom.stored import AT_TYPE, StoredTable, at_field, hashes, physical_schema
from stillroom.tables import one_array
from tasks.specs import REMOVED_SCHEMA, StageSpec

__all__ = ["Removed", "check_given", "concat_references", "fit", "leave_out", "references", "split_rows"]


class Removed:
    """The rows that left one partition, unit or select, with their reasons."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.counts = {"dropped": 0, "rejected": 0, "merged": 0}

    def add(self, rows: pa.RecordBatch | pa.Table, reasons: pa.Array, kind: str, positions: np.ndarray, source_input: str = "") -> None:
        """Note rows that left: `rows` holds `sample_id` and perhaps `source`."""
        if rows.num_rows:
            self.batches.append(self.batch(rows, reasons, kind, positions, source_input))

    def batch(self, rows: pa.RecordBatch | pa.Table, reasons: pa.Array, kind: str, positions: np.ndarray, source_input: str = "") -> pa.RecordBatch:
        """Count rows that left, as `add` does, for whoever writes them himself."""
        count = rows.num_rows
        ids = _flat(rows["sample_id"]).cast(pa.string())
        sources = _flat(rows["source"]).cast(pa.string()) if "source" in rows.schema.names else pa.nulls(count, pa.string())
        columns = [ids, sources, _flat(reasons).cast(pa.string()), pa.repeat(kind, count), pa.repeat(source_input, count), pa.array(positions, pa.int64())]
        self.counts[kind] += count
        return pa.record_batch(columns, schema=REMOVED_SCHEMA)


def references(table: StoredTable, rows: np.ndarray) -> pa.Table:
    """Rows in the form in which a next stage stores them: light columns, and for each heavy one its hash and place."""
    schema = table.schema
    made_here = [name for name in heavy_names(schema) if table.origin(name)]
    stored = [field.name for field in physical_schema(schema, made_here) if field.name not in made_here]
    found = table.take_stored(rows, stored)
    for name in made_here:
        positions = table.positions[rows] if table.ref.split is not None else np.asarray(rows, np.int64)
        origin = pa.array([table.origin(name)] * len(positions), pa.string())
        at = pa.StructArray.from_arrays([origin, pa.array(positions, pa.int64())], fields=list(AT_TYPE))
        missing = pc.is_null(_flat(found[f"{name}_hash"]))
        at = pc.if_else(missing, pa.scalar(None, AT_TYPE), at)
        found = found.append_column(at_field(schema.field(name)), at)
    return found


def split_rows(rows: Rows) -> tuple[np.ndarray, list[tuple[str, np.ndarray, pa.Array]]]:
    """Kept positions of a batch, and for dropped and rejected rows their positions and reasons.

    A row with both reasons is rejected: a fault says more than a choice.
    """
    count = rows.batch.num_rows
    kept = np.ones(count, bool)
    left: list[tuple[str, np.ndarray, pa.Array]] = []
    for kind, reasons in (("rejected", rows.rejected), ("dropped", rows.dropped)):
        if reasons is None:
            continue
        flat = _flat(reasons)
        where = np.flatnonzero(flat.is_valid().to_numpy(zero_copy_only=False) & kept)
        kept[where] = False
        left.append((kind, where, flat.take(pa.array(where))))
    return np.flatnonzero(kept), left


def leave_out(rows: Rows, gone_B: np.ndarray) -> Rows:
    """The rows of which `gone_B` isn't true, with their reasons."""
    if not gone_B.any():
        return rows
    stay = pa.array(~gone_B)
    dropped, rejected = (None if reasons is None else _flat(reasons).filter(stay) for reasons in (rows.dropped, rows.rejected))
    return Rows(rows.batch.filter(stay), dropped, rejected)


def check_given(spec: StageSpec, given: Sequence[str], declared: Iterable[str]) -> None:
    """Refuse what lacks a declared column: it would be stored as nulls.

    Raises:
        StageError: names the first column that is missing.
    """
    for name in declared:
        if name not in given:
            raise StageError(spec.stage, f"operator '{spec.operator}' gave no column '{name}', which it declares")


def fit(stage: str, columns: Mapping[str, pa.Array | pa.ChunkedArray], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Columns as a batch of exactly this stored schema: hashes made, absent columns null, lossless casts only.

    Raises:
        StageError: a column has another type than declared.
    """
    arrays = []
    for field in schema:
        column = columns.get(field.name)
        if field.name.endswith("_hash") and field.name[:-5] in columns and heavy_kind(schema.field(field.name[:-5])):
            column = hashes(_flat(columns[field.name[:-5]]))
        if column is None:
            arrays.append(pa.nulls(rows, field.type))
            continue
        flat = _flat(column)
        if flat.type != field.type:
            if _is_text(flat.type) != _is_text(field.type) and not pa.types.is_null(flat.type):
                raise StageError(stage, f"column '{field.name}' is {flat.type}, but {field.type} is declared")  # "7" is no number, although Arrow would read it
            try:
                flat = flat.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise StageError(stage, f"column '{field.name}' is {flat.type}, but {field.type} is declared", str(error).split("\n")[0]) from None
        arrays.append(flat)
    return pa.record_batch(arrays, schema=schema)


def concat_references(parts: Sequence[pa.Table]) -> pa.Table:
    """Rows of several inputs one after another; columns that one of them lacks are null there."""
    return pa.concat_tables(parts, promote_options="default")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return one_array(column) if isinstance(column, pa.ChunkedArray) else column
