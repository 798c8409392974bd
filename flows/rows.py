"""What may become of a stage's rows: how many may be rejected, and whether any has to be left."""

from flows.plan import Planned
from schemas.checks import RowCount
from schemas.recipe import Require
from stillroom.errors import StageError
from stillroom.records import Record
from stillroom.stored import StoredTable
from stillroom.stores import Store

__all__ = ["check_rows"]


def check_rows(planned: Planned, record: Record, require: Require, store: Store) -> None:
    """Refuse a stage with too many rejected rows, or with none left.

    Raises:
        StageError: which of the two, with the first reasons of rejected rows.
    """
    came = record.came_in
    rejected = record.counts.get("rejected", 0)
    if came and rejected / came > require.max_rejects:
        raise StageError(
            planned.name,
            f"{rejected:,} of {came:,} rows were rejected, more than max_rejects {require.max_rejects:.1%} allows{_example(record, store)}",
            "mend the source, or raise publish.require.max_rejects",
        )
    empty_is_fine = any(isinstance(check, RowCount) and check.rows.min == 0 for check in require.checks)
    if planned.resolved.operator.gives == "samples" and not record.table.rows and not empty_is_fine:
        raise StageError(
            planned.name, "no row is left" if came else "nothing came in", "loosen it, or allow it with publish.require.checks: [{rows: {min: 0}}]"
        )


def _example(record: Record, store: Store) -> str:
    """The first reasons of rejected rows, for the error's text."""
    if record.removed is None:
        return ""
    removed = StoredTable(store, record.removed).frame(["source", "reason", "kind"])
    first = [f"{row['source'] or 'a row'}: {row['reason']}" for row in removed.iter_rows(named=True) if row["kind"] == "rejected"][:2]
    return f" ({'; '.join(first)})"
