"""Takeover: rows of a row operator for which nothing changed come from the table of an earlier build.

A row operator gives the same row whatever stands around it. So where operator, parameters and all
other inputs are as they were, only rows that are new, or whose required values changed, are worked on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from stillroom.digests import json_digest
from stillroom.fields import heavy_kind
from stillroom.integrity import changed_sizes
from stillroom.operators import Rows, Unit
from stillroom.records import Record, TableRef, read_record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from stillroom.tables import one_array
from tasks.specs import Part, StageSpec

__all__ = ["Earlier", "find_earlier", "keep_units", "match_rows", "merged", "note_latest", "units_of"]


class Earlier(NamedTuple):
    """An earlier build of a stage: its record, and the table that it read (None for a source)."""

    record: Record
    input: TableRef | None


def find_earlier(spec: StageSpec, store: Store) -> Earlier | None:
    """What the latest build of this stage, with just this operator, parameters and other inputs, left, if it is still there."""
    found = store.read_json(f"latest/{_base(spec)}.json")
    record = read_record(store, found["fingerprint"]) if found else None
    return Earlier(record, TableRef(**found["input"]) if found["input"] else None) if record else None


def note_latest(spec: StageSpec, store: Store) -> None:
    """Let the next build know what this one left."""
    first = next(iter(spec.inputs.values()), None)
    store.put_json(f"latest/{_base(spec)}.json", {"fingerprint": spec.fingerprint, "input": asdict(first) if first else None})


def keep_units(spec: StageSpec, store: Store, units: Sequence[Unit], parts: Sequence[Part], changed: Collection[str]) -> None:
    """Note what each unit of a source left, for the next build; not of those whose rows the engine `changed`, since that hangs on other units."""
    found, start = {}, 0
    for unit, part in zip(units, parts, strict=True):
        if unit.key and unit.name not in changed:
            files = {key: facts for key, facts in part.files.items() if ".lance/" in key}
            found[unit.key] = {"start": start, "part": asdict(replace(part, files=files))}
        start += part.tally["rows"]
    store.put_json(f"records/{spec.fingerprint}.units", {"units": found})


def units_of(spec: StageSpec, store: Store, record: Record) -> dict[str, tuple[int, Part]]:
    """By key, the units of an earlier build of a source: the first row of each in its table, and what it left."""
    found = store.read_json(f"records/{record.fingerprint}.units")
    if found is None or not StoredTable(store, record.table).schema.equals(spec.schema, check_metadata=True):
        return {}
    units = {key: (line["start"], Part(**line["part"])) for key, line in found["units"].items()}
    return {key: (start, part) for key, (start, part) in units.items() if not changed_sizes(store, part.files)}


def match_rows(store: Store, earlier: Earlier, name: str, table: StoredTable, required: Sequence[str], added: Sequence[pa.Field]) -> pl.DataFrame | None:
    """For each row of the new input: its row in the earlier output (`kept`), or the `reason` and `kind` with which it left; null for new and changed ones.

    Rows are the same if id and required values are; a heavy value goes by its hash. None where nothing
    can be taken over: schemas differ, or a required value is nested, which isn't compared.

    Args:
        earlier: as `find_earlier` gives it.
        name: of the input whose rows these are.
        table: the new input.
        required: columns that the operator reads.
        added: columns that it makes.
    """
    assert earlier.input is not None
    before, output = StoredTable(store, earlier.input), StoredTable(store, earlier.record.table)
    columns = [f"{column}_hash" if heavy_kind(table.schema.field(column)) else column for column in required]
    nested = any(pa.types.is_nested(table.schema.field(column).type) for column in columns)
    if nested or not before.schema.equals(table.schema, check_metadata=True) or any(output.schema.get_field_index(field.name) < 0 for field in added):
        return None
    columns = list(dict.fromkeys(["sample_id", *columns]))
    same = [pl.col(column).eq_missing(pl.col(f"{column}_before")) for column in columns[1:]]
    found = table.frame(columns).join(before.frame(columns).with_row_index("place"), on="sample_id", how="left", suffix="_before", maintain_order="left")
    found = found.with_columns(pl.when(pl.all_horizontal(pl.lit(value=True), *same)).then(pl.col("place")))
    kept = output.frame(["sample_id"]).with_row_index("kept")
    found = found.join(kept, on="sample_id", how="left", maintain_order="left").join(
        _left(store, earlier.record, name), on="place", how="left", maintain_order="left"
    )
    known = pl.col("place").is_not_null()
    return found.select(
        kept=pl.when(known & pl.col("kind").is_null()).then(pl.col("kept").cast(pl.Int64)),
        reason=pl.when(known).then(pl.col("reason")),
        kind=pl.when(known).then(pl.col("kind")),
    )


def merged(lines: pl.DataFrame, fresh: Rows | None, output: StoredTable, added: Mapping[str, pa.Field]) -> Rows:
    """The rows of a window, those worked on now and those taken over, in the window's order.

    Args:
        lines: of the window, as `match_rows` gives them.
        fresh: what the operator gave for the rows without `kept` and `kind`; None where there are none.
        output: the earlier table.
        added: columns that the operator makes, by name.
    """
    taken_N, left_N = lines["kept"].is_not_null().to_numpy(), lines["kind"].is_not_null().to_numpy()
    fresh_N = ~(taken_N | left_N)
    back_N = np.argsort(np.concatenate([np.flatnonzero(mask) for mask in (fresh_N, taken_N, left_N)]), kind="stable")
    before = output.take(lines["kept"].drop_nulls().to_numpy(), list(added)) if added else {}
    columns = {}
    for name, field in added.items():
        values = [] if fresh is None else [fresh.batch[name].cast(field.type)]
        values += [one_array(before[name]).cast(field.type), pa.nulls(int(left_N.sum()), field.type)]
        columns[name] = pa.concat_arrays(values).take(pa.array(back_N))
    # Without columns a batch would have no rows.
    batch = pa.record_batch(columns) if added else pa.record_batch({"sample_id": pa.nulls(lines.height, pa.string())})
    return Rows(batch, *(_reasons(lines, fresh, kind, fresh_N) for kind in ("dropped", "rejected")))


def _reasons(lines: pl.DataFrame, fresh: Rows | None, kind: str, fresh_N: np.ndarray) -> pa.Array:
    reasons = lines.select(pl.when(pl.col("kind") == kind).then(pl.col("reason")))["reason"].to_list()
    given = None if fresh is None else getattr(fresh, kind)
    if given is not None:
        for place, reason in zip(np.flatnonzero(fresh_N), given.to_pylist(), strict=True):
            reasons[place] = reason
    return pa.array(reasons, pa.string())


def _left(store: Store, record: Record, name: str) -> pl.DataFrame:
    """The rows that left then: place in the input, reason, kind."""
    empty = pl.DataFrame(schema={"place": pl.UInt32, "reason": pl.String, "kind": pl.String})
    if record.removed is None:
        return empty
    gone = StoredTable(store, record.removed).frame(["row", "reason", "kind", "input"]).filter(pl.col("input") == name)
    return gone.select(place=pl.col("row").cast(pl.UInt32), reason="reason", kind="kind")


def _base(spec: StageSpec) -> str:
    """What the stage's output depends on, apart from the rows of its first input; of a source, apart from what its files hold.

    And which stage it is: two of one operator and parameters have rows of their own, and so has a trial.
    """
    of = {"in": spec.table, "trial": spec.trial}
    if not spec.inputs:
        params = {name: None if isinstance(value, dict) and list(value) == ["digest"] else value for name, value in spec.parts["params"].items()}
        return json_digest({"units of": {**spec.parts, "params": params}, **of})
    first = next(iter(spec.inputs))
    inputs = {name: prints for name, prints in spec.parts["inputs"].items() if name != first}
    return json_digest({"rows of": {**spec.parts, "inputs": inputs}, "by": first, **of})
