"""What runs in a worker: one partition of a row operator, one select, one unit, one join. Each leaves a `Part`."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.errors import StageError
from stillroom.fields import heavy_names
from stillroom.operators import Rows, Unit, call
from stillroom.records import Record, TableRef
from stillroom.repeats import hashed, met_twice
from stillroom.stored import StoredTable, physical_schema, with_hashes
from stillroom.stores import Store
from storage.tally import checked_tally
from storage.tombstones import read_tombstones
from tasks.earlier import Earlier, units_of
from tasks.lines import Lines, frame_columns
from tasks.pool import report_progress
from tasks.rows import Removed, check_given, concat_references, fit, leave_out, references, split_rows
from tasks.specs import Part, StageSpec
from tasks.stage_run import StageRun, read_ipc, to_ipc
from tasks.takeover import match_rows, merged

__all__ = [
    "count_new",
    "duplicates_job",
    "join_job",
    "list_units_job",
    "match_job",
    "row_job",
    "rows_job",
    "select_job",
    "source_job",
    "take_units_job",
    "tally_job",
    "unit_job",
]

WINDOW_ROWS = 1024
_states: dict[str, Any] = {}


def row_job(spec: StageSpec, start: int, stop: int, earlier: TableRef | None = None) -> Part:
    """Run a row operator over rows start to stop of its first input; rows that `match_job` found in `earlier` are taken over."""
    run = StageRun(spec)
    first = next(iter(run.inputs))
    table = run.inputs[first]
    added = run.added
    declared = run.operator.inputs[first]
    requires = [name for name in dict.fromkeys(["sample_id", *declared.columns(run.params), *declared.also]) if name in table.schema.names]
    if run.operator.setup and spec.fingerprint not in _states:
        _states.clear()
        _states[spec.fingerprint] = call(run.operator.setup, run.offer())
    removed = Removed()
    kept_rows = taken_rows = 0
    schema = physical_schema(spec.schema, heavy_names(pa.schema(added.values())))
    output = StoredTable(run.store, earlier) if earlier else None
    lines: Any = pl.from_arrow(read_ipc(run.store, _taken_key(spec, start))) if earlier else None

    def worked(positions: np.ndarray) -> Rows:
        batch = _one_batch(table.take(positions, requires))
        rows: Rows = call(run.operator.fn, run.offer(batch=batch, state=_states.get(spec.fingerprint), peers=table, schema=table.schema))
        if rows.batch.num_rows != batch.num_rows:
            problem = f"operator '{spec.operator}' gave {rows.batch.num_rows} rows for {batch.num_rows}"
            raise StageError(spec.stage, problem, "an operator must give every row back, with a reason where it leaves")
        check_given(spec, rows.batch.schema.names, added)
        return rows

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal kept_rows, taken_rows
        for begin in range(start, stop, WINDOW_ROWS):
            positions = np.arange(begin, min(begin + WINDOW_ROWS, stop))
            if lines is None or output is None:
                rows = worked(positions)
            else:
                of_window = lines[begin - start : begin - start + len(positions)]
                fresh = positions[(of_window["kept"].is_null() & of_window["kind"].is_null()).to_numpy()]
                taken_rows += len(positions) - len(fresh)
                rows = merged(of_window, worked(fresh) if len(fresh) else None, output, added)
            kept, left = split_rows(rows)
            carried = references(table, positions)
            for kind, where, reasons in left:
                removed.add(carried.take(pa.array(where)), reasons, kind, positions[where], first)
            columns = {name: carried[name] for name in carried.column_names} | {name: rows.batch[name] for name in added}
            columns = {name: column.take(pa.array(kept)) for name, column in columns.items()} if left else columns
            kept_rows += len(kept)
            yield fit(spec.stage, columns, schema, len(kept))
            report_progress(spec.fingerprint, f"{start}", begin + len(positions) - start, stop - start)

    written = run.write(spec.table, batches(), schema)
    return run.part(written, removed, {"in": stop - start, "out": kept_rows, "taken": taken_rows})


def match_job(spec: StageSpec, earlier: Earlier, bounds: list[tuple[int, int]]) -> bool:
    """Note in the stage's work, for each partition, what it can take over of an earlier build; whether it can at all."""
    run = StageRun(spec)
    lines = _matched(run, earlier)
    if lines is None:
        return False
    for start, stop in bounds:
        part = lines[start:stop].to_arrow()
        run.store.put(_taken_key(spec, start), to_ipc(part.to_batches(), part.schema))
    return True


def count_new(spec: StageSpec, earlier: Earlier) -> tuple[int, int]:
    """How many rows a row operator would work on beside what it can take over of an earlier build, and how many come in."""
    run = StageRun(spec)
    lines = _matched(run, earlier)
    rows = next(iter(run.inputs.values())).rows
    return rows if lines is None else lines.filter(pl.col("kept").is_null() & pl.col("kind").is_null()).height, rows


def _matched(run: StageRun, earlier: Earlier) -> pl.DataFrame | None:
    name, table = next(iter(run.inputs.items()))
    declared = run.operator.inputs[name]
    required = [column for column in dict.fromkeys([*declared.columns(run.params), *declared.also]) if column in table.schema.names]
    return match_rows(run.store, earlier, name, table, required, list(run.added.values()))


def select_job(spec: StageSpec) -> Part:
    """Run a select operator over the light columns of its inputs and write the rows that it keeps.

    Its lines are worked through in windows: what must fit in memory is what the operator itself holds of each row.
    """
    run = StageRun(spec)
    frames: dict[str, pl.DataFrame] = {}
    vectors: dict[str, np.ndarray] = {}
    flowing = []
    for name, table in run.inputs.items():
        declared = run.declared(name)
        frames[name] = table.frame(frame_columns(declared, run.params, table.schema))
        vectors |= {column: table.vectors(column) for column in declared.vector_columns(run.params)}
        if not declared.reference:
            flowing.append(name)
    lines = Lines(spec, call(run.operator.fn, run.offer(frames=frames, vectors=vectors)), {name: frames[name].height for name in flowing})
    check_given(spec, lines.columns, run.added)
    schema = physical_schema(spec.schema, heavy_names(pa.schema(run.added.values())))

    def batches() -> Iterator[pa.RecordBatch]:
        for window in lines.kept(list(run.added)):
            carried = _carry(run.inputs, window)
            columns = {name: carried[name] for name in carried.column_names} | {name: window[name].to_arrow() for name in run.added}
            yield fit(spec.stage, columns, schema, window.height)

    removed = Removed()

    def left() -> Iterator[pa.RecordBatch]:
        for window in lines.left():
            for (of_input, kind), group in window.partition_by("input", "kind", as_dict=True, maintain_order=True).items():
                frame, positions = frames[str(of_input)], group["row"].to_numpy()
                light = frame.select([name for name in ("sample_id", "source") if name in frame.columns])[positions]
                yield removed.batch(light.to_arrow(), group["reason"].to_arrow(), str(kind), positions, str(of_input))

    gone = run.write_removed(left())
    written = run.write(spec.table, batches(), schema)
    return run.part(written, removed, {"in": lines.count, "out": written.tally["rows"]}, gone)


def list_units_job(spec: StageSpec) -> list[Unit]:
    """List the units of a stage."""
    run = StageRun(spec)
    assert run.operator.units is not None
    units: list[Unit] = call(run.operator.units, run.offer())
    return units


def source_job(spec: StageSpec, unit: Unit, excluded: dict[int, tuple[str, str]]) -> Part:
    """Run one unit of a source; `excluded` rows (by their number among the unit's sound ones) leave with (kind, reason)."""
    run = StageRun(spec)
    schema = physical_schema(spec.schema, heavy_names(spec.schema))
    removed = Removed()
    counts = {"planned": 0, "out": 0}
    idents: list[pa.RecordBatch] = []
    tombstones = read_tombstones(run.store)

    def batches() -> Iterator[pa.RecordBatch]:
        sound = 0
        for given in run.unit(unit):
            rows = given if isinstance(given, Rows) else Rows(given)
            check_given(spec, rows.batch.schema.names, run.added)
            positions = np.arange(counts["planned"], counts["planned"] + rows.batch.num_rows)
            counts["planned"] += rows.batch.num_rows
            if tombstones:
                # Counted, and noted nowhere: a line among the removed rows would name who asked to be forgotten.
                gone_B = tombstones.forgotten(rows.batch, spec.table)
                rows, positions = leave_out(rows, gone_B), positions[~gone_B]
                counts["forgotten"] = counts.get("forgotten", 0) + int(gone_B.sum())
            kept, left = split_rows(rows)
            for kind, where, reasons in left:
                removed.add(rows.batch.take(pa.array(where)), reasons, kind, positions[where])
            out = [index for number, index in enumerate(kept, sound) if number not in excluded]
            for number, index in enumerate(kept, sound):
                if number in excluded:
                    kind, reason = excluded[number]
                    removed.add(rows.batch.slice(index, 1), pa.array([reason]), kind, positions[index : index + 1])
            sound += len(kept)
            batch = rows.batch.take(pa.array(out, pa.int64()))
            counts["out"] += batch.num_rows
            idents.append(_idents(batch))
            yield fit(spec.stage, {name: batch[name] for name in batch.schema.names}, schema, batch.num_rows)

    written = run.write(spec.table, batches(), schema)
    if not excluded:
        # All ids, duplicates too: a build that is stopped after this has to find them again.
        written = written._replace(files=written.files | run.keep(unit.name, idents, IDENT_SCHEMA))
    return run.part(written, removed, counts)


def take_units_job(spec: StageSpec, units: list[Unit], earlier: Record) -> None:
    """Leave the units of an earlier build, where they read just the same, in the stage's work as if they had been run."""
    run = StageRun(spec)
    found = units_of(spec, run.store, earlier)
    table = StoredTable(run.store, earlier.table)
    for unit in units:
        if unit.key not in found or run.store.read(f"{spec.work}/{unit.name}.json") is not None:
            continue
        start, part = found[unit.key]
        names = [name for name in IDENT_SCHEMA.names if name in table.schema.names]
        idents = _idents(_one_batch(table.take(range(start, start + part.tally["rows"]), names)))
        files = part.files | run.keep(unit.name, [idents], IDENT_SCHEMA)
        run.store.put_json(f"{spec.work}/{unit.name}.json", asdict(replace(part, files=files, counts=part.counts | {"taken": part.counts["planned"]})))


def duplicates_job(spec: StageSpec, units: list[str]) -> dict[str, dict[int, tuple[str, str]]]:
    """Find rows of a source with one id: by unit and number, what to say of each that must leave.

    Equal rows are merged into one, of test if any is, else of validation, else the first: a row
    leaves train, never test. Under two labels all of them are rejected.
    """
    store = Store(spec.store)

    def idents(name: str, columns: list[str]) -> pl.DataFrame:
        frame = pl.from_arrow(read_ipc(store, f"{spec.work}/{name}.arrow").select(columns))
        assert isinstance(frame, pl.DataFrame)
        return frame

    hashes = {name: hashed(idents(name, ["sample_id"])["sample_id"]) for name in units}
    frames: list[pl.DataFrame] = []
    if len(twice := met_twice(hashes.values())):
        for name, of_unit in hashes.items():
            suspect = np.isin(of_unit, twice)
            number = pl.int_range(pl.len()).cast(pl.Int64).alias("number")
            if suspect.any():
                frames.append(idents(name, IDENT_SCHEMA.names).with_columns(pl.lit(name).alias("unit"), number).filter(pl.Series(suspect)))
    if not frames:
        return {}
    alike = pl.concat(frames)
    same = alike.filter(pl.col("sample_id").is_duplicated())
    found: dict[str, dict[int, tuple[str, str]]] = {}
    rank = pl.col("split").replace_strict({"test": 0, "validation": 1}, default=2, return_dtype=pl.Int8)
    for group in same.sort(rank, maintain_order=True).partition_by("sample_id", maintain_order=True):
        labels = group["label"].drop_nulls().unique(maintain_order=True).to_list()
        torn = len(labels) > 1
        for line in group[0 if torn else 1 :].iter_rows(named=True):
            reason = f"equal content under two labels ({labels[0]} and {labels[1]})" if torn else f"equal to {group['source'][0] or group['sample_id'][0]}"
            found.setdefault(line["unit"], {})[line["number"]] = ("rejected" if torn else "merged", reason)
    return found


def unit_job(spec: StageSpec, unit: Unit) -> Part:
    """Run one unit that trains, scores or measures; its rows wait in the stage's work."""
    run = StageRun(spec)
    started = time.perf_counter()
    batches = [given for given in run.unit(unit)]
    files = run.keep(unit.name, batches, batches[0].schema if batches else pa.schema([]))
    seconds = {f"seconds.{unit.name}": round(time.perf_counter() - started, 2)}
    return Part(files=files, counts={"out": sum(batch.num_rows for batch in batches)}, metrics={**run.metrics, **seconds})


def rows_job(spec: StageSpec, units: list[str]) -> Part:
    """Gather the rows of all units, finish them, and write them as the stage's table (for a score: its columns)."""
    run = StageRun(spec)
    tables = [read_ipc(run.store, f"{spec.work}/{name}.arrow") for name in units]
    if run.operator.finish:
        table: pa.Table = call(run.operator.finish, run.offer(tables=tables))
    else:
        filled = [table for table in tables if table.num_columns]
        table = pa.concat_tables(filled, promote_options="default") if filled else pa.schema([("sample_id", pa.string()), *run.added.values()]).empty_table()
    check_given(spec, table.column_names, run.added)
    if run.operator.shape == "score":
        _check_scored(spec, table["sample_id"], next(iter(run.inputs.values())).rows)
    names = ["sample_id", *run.added] if run.operator.shape == "score" else list(run.added)
    logical = with_hashes(pa.schema([pa.field("sample_id", pa.string()) if name not in run.added else run.added[name] for name in names]))
    schema = physical_schema(logical, heavy_names(logical))
    batch = fit(spec.stage, {name: table[name] for name in table.column_names}, schema, table.num_rows)
    name = f"{spec.table}.scores" if run.operator.shape == "score" else spec.table
    return run.part(run.write(name, [batch], schema), Removed(), {"out": table.num_rows})


def join_job(spec: StageSpec, scores: TableRef) -> Part:
    """Join a score's columns to its input's rows, by id; each row must have them exactly once."""
    run = StageRun(spec)
    first = next(iter(run.inputs))
    table, columns = run.inputs[first], StoredTable(run.store, scores)
    ids = columns.frame(["sample_id"])["sample_id"].to_arrow().cast(pa.string())
    schema = physical_schema(spec.schema, [])
    rows = table.rows
    _check_scored(spec, ids, rows)

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, rows, 4096):
            positions = np.arange(begin, min(begin + 4096, rows))
            carried = references(table, positions)
            found = pc.index_in(_one_batch(carried.select(["sample_id"])).column(0).cast(pa.string()), value_set=ids)
            if found.null_count:
                raise StageError(
                    spec.stage, f"operator '{spec.operator}' left out {found.null_count} rows", "a score must give each row of its input exactly once"
                )
            scored = references(columns, found.to_numpy().astype(np.int64))
            merged = {name: carried[name] for name in carried.column_names} | {name: scored[name] for name in scored.column_names if name != "sample_id"}
            yield fit(spec.stage, merged, schema, len(positions))

    return run.part(run.write(spec.table, batches(), schema), Removed(), {"in": rows, "out": rows})


def tally_job(store: str, ref: TableRef, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The tally of a committed table from those of its parts; as `storage.tally.checked_tally`."""
    return checked_tally(StoredTable(Store(store), ref), parts)


IDENT_SCHEMA = pa.schema([("sample_id", pa.string()), ("label", pa.string()), ("source", pa.string()), ("split", pa.string())])


def _taken_key(spec: StageSpec, start: int) -> str:
    return f"{spec.work}/taken/{start}.arrow"


def _carry(inputs: dict[str, StoredTable], window: Any) -> pa.Table:
    """The chosen rows of one or several inputs, in the order of the window's lines."""
    names = window["input"].to_numpy()
    parts, order = [], []
    for name in dict.fromkeys(names):
        where = np.flatnonzero(names == name)
        order.append(where)
        parts.append(references(inputs[name], window["row"].to_numpy()[where]))
    if len(parts) == 1:
        return parts[0]
    return concat_references(parts).take(pa.array(np.argsort(np.concatenate(order))))


def _check_scored(spec: StageSpec, ids: pa.Array | pa.ChunkedArray, rows: int) -> None:
    if len(ids) != rows or len(pc.unique(ids)) != rows:
        raise StageError(spec.stage, f"operator '{spec.operator}' scored {len(ids)} rows of {rows}", "a score must give each row of its input exactly once")


def _idents(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [batch[name].cast(pa.string()) if name in batch.schema.names else pa.nulls(batch.num_rows, pa.string()) for name in IDENT_SCHEMA.names]
    return pa.record_batch(columns, schema=IDENT_SCHEMA)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
