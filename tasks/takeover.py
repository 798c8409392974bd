"""Takeover: rows of a row operator for which nothing changed come from the table of an earlier build.

A row operator gives the same row whatever stands around it. So where operator, parameters and all
other inputs are as they were, only rows that are new, or whose required values changed, are worked on.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from stillroom.fields import heavy_kind
from stillroom.operators import Rows
from stillroom.records import Record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from stillroom.tables import one_array
from tasks.earlier import Earlier

__all__ = ["match_rows", "merged"]


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
