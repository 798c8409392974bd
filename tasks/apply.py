"""stillroom.apply: one operator on a frame, without recipe, store or Prefect."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from schemas.wording import faults_of
from stillroom import registry
from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import heavy_kind
from stillroom.operators import Rows, Work, call
from stillroom.stored import hashes
from stillroom.tables import BaseTable, MemoryTable
from tasks.lines import frame_columns

if TYPE_CHECKING:
    from stillroom.snapshots import Snapshot

__all__ = ["Applied", "apply"]

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Applied:
    """What became of the rows: those kept with added columns, those removed with reason and kind, small facts."""

    kept: pl.DataFrame
    removed: pl.DataFrame
    metrics: dict[str, Any]


def apply(operator: str, frame: "pl.DataFrame | pa.Table | Snapshot", *, seed: int = 0, inputs: dict[str, Any] | None = None, **params: Any) -> Applied:
    """Run a row, select or score operator on a Polars frame, an Arrow table, or a snapshot.

    Args:
        operator: its name, such as "filter.near_duplicates".
        frame: the rows; without a `sample_id` column they get their number as one.
        seed: of its draws.
        inputs: further inputs by name (a teacher's table, say).
        params: the operator's parameters.

    Raises:
        InputError: no such parameter, a missing column, or an operator that has no rows to give back.
    """
    found = registry.load(operator)
    if found.shape not in ("row", "select", "score"):
        raise InputError(f"apply('{operator}')", f"is a {found.shape} and gives no rows back for those it gets", "use it in a recipe")
    try:
        checked = found.params.model_validate(params)
    except ValidationError as error:
        wrong = faults_of(error, found.params, params)[0]
        raise InputError(f"apply('{operator}')", f"{wrong.field}: {wrong.problem}", wrong.hint) from None
    table = _table(frame)
    first = next(iter(found.inputs))
    tables: dict[str, Any] = {("samples" if first == "*" else first): table} | {name: _table(value) for name, value in (inputs or {}).items()}
    if found.prepare:
        shared = {name: value for name, value in params.items() if name in registry.load(found.prepare).params.model_fields}
        table = _table(apply(found.prepare, table.table, seed=seed, **shared).kept)
        tables[next(iter(tables))] = table
    missing = [name for name in next(iter(found.inputs.values())).columns(checked) if name not in table.schema.names]
    if missing:
        raise InputError(f"apply('{operator}')", f"the frame has no column '{missing[0]}'", f"it has {', '.join(table.schema.names)}")
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="stillroom-") as scratch:
        work = Work(device="cpu", threads=1, scratch=Path(scratch), draw=Draw(seed, operator), metrics=metrics)
        offer = {"inputs": tables, "params": checked, "draw": work.draw, "work": work, "metrics": metrics, "schema": table.schema, "peers": table}
        columns, reasons, kinds = {"row": _row, "select": _select, "score": _score}[found.shape](found, table, tables, offer)
    whole = pl.DataFrame(table.table).with_columns(**{name: pl.Series(name, values) for name, values in columns.items()})
    left = pl.Series("reason", reasons, pl.String)
    removed = whole.select([name for name in ("sample_id", "source") if name in whole.columns]).with_columns(left, pl.Series("kind", kinds, pl.String))
    return Applied(whole.filter(left.is_null()), removed.filter(left.is_not_null()), metrics)


Outcome = tuple[dict[str, Any], list[str | None], list[str | None]]


def _row(found: Any, table: MemoryTable, tables: dict[str, BaseTable], offer: dict[str, Any]) -> Outcome:
    state = call(found.setup, offer) if found.setup else None
    declared = next(iter(found.inputs.values()))
    requires = [name for name in ["sample_id", *declared.columns(offer["params"]), *declared.also] if name in table.schema.names]
    added = found.added(offer["params"], {name: each.schema for name, each in tables.items()})
    columns: dict[str, list[pa.Array]] = {name: [] for name in added}
    reasons: list[str | None] = []
    kinds: list[str | None] = []
    for batch in table.scan(list(dict.fromkeys(requires)), BATCH_ROWS):
        rows: Rows = call(found.fn, offer | {"batch": batch, "state": state})
        for name in added:
            columns[name].append(rows.batch[name])
        for rejected, dropped in zip(_reasons(rows.rejected, batch.num_rows), _reasons(rows.dropped, batch.num_rows), strict=True):
            reasons.append(rejected or dropped)
            kinds.append("rejected" if rejected else "dropped" if dropped else None)
    return {name: pa.chunked_array(parts, added[name].type) for name, parts in columns.items()}, reasons, kinds


def _select(found: Any, table: MemoryTable, tables: dict[str, BaseTable], offer: dict[str, Any]) -> Outcome:
    first = next(iter(tables))
    frames: dict[str, pl.DataFrame] = {}
    vectors: dict[str, Any] = {}
    for name, each in tables.items():
        declared = found.inputs.get(name) or found.inputs["*"]
        frames[name] = each.frame(frame_columns(declared, offer["params"], each.schema))
        vectors |= {column: each.vectors(column) for column in declared.vector_columns(offer["params"])}
    lines: pl.DataFrame = call(found.fn, offer | {"frames": frames, "vectors": vectors}).lazy().collect()
    if "input" in lines.columns:
        lines = lines.filter(pl.col("input") == first)
    if "row" in lines.columns:
        lines = lines.sort("row")
    if "kind" not in lines.columns:
        lines = lines.with_columns(pl.lit(None, pl.String).alias("kind"))
    kinds = lines.select(pl.when(pl.col("reason").is_not_null()).then(pl.col("kind").fill_null("dropped"))).to_series()
    added = found.added(offer["params"], {name: each.schema for name, each in tables.items()})
    return {name: lines[name] for name in added}, lines["reason"].to_list(), kinds.to_list()


def _score(found: Any, table: MemoryTable, tables: dict[str, BaseTable], offer: dict[str, Any]) -> Outcome:
    parts = []
    for unit in call(found.units, offer):
        batches = list(call(found.fn, offer | {"unit": unit}))
        parts.append(pa.Table.from_batches(batches))
    scored = pl.DataFrame(call(found.finish, offer | {"tables": parts}) if found.finish else pa.concat_tables(parts))
    ids = pl.DataFrame(table.table.select(["sample_id"]))
    joined = ids.join(scored, on="sample_id", how="left", maintain_order="left")
    nothing: list[str | None] = [None] * table.rows
    return {name: joined[name] for name in scored.columns if name != "sample_id"}, nothing, nothing


def _table(value: Any) -> MemoryTable:
    if isinstance(value, MemoryTable):
        return value
    if hasattr(value, "manifest"):
        stored = value.table()
        value = pa.Table.from_batches(stored.scan(), stored.schema)
    arrow: pa.Table = value.to_arrow(compat_level=pl.CompatLevel.oldest()) if isinstance(value, pl.DataFrame) else value
    fields = [pa.field(field.name, _plain(field.type), metadata=field.metadata) for field in arrow.schema]
    arrow = arrow.cast(pa.schema(fields))
    if "sample_id" not in arrow.column_names:
        arrow = arrow.append_column("sample_id", pa.array([str(row) for row in range(arrow.num_rows)]))
    if "image" in arrow.column_names and not heavy_kind(arrow.schema.field("image")):
        from stillroom.fields import image_field

        place = arrow.schema.get_field_index("image")
        arrow = arrow.set_column(place, image_field(), arrow["image"].cast(pa.binary()))
    if "image" in arrow.column_names and "image_hash" not in arrow.column_names:
        arrow = arrow.append_column("image_hash", hashes(pa.concat_arrays(arrow["image"].chunks) if arrow.num_rows else pa.array([], pa.binary())))
    return MemoryTable(arrow)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Polars gives large types, which tables of ours don't have."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return pa.list_(_plain(kind.value_type)) if pa.types.is_large_list(kind) else kind


def _reasons(reasons: pa.Array | None, rows: int) -> list[str | None]:
    return [None] * rows if reasons is None else reasons.to_pylist()
