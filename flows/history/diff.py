"""Two snapshots compared: rows that came, went, moved or changed, column by column, classes, scores, and why.

Rows are joined by sample id. Only light columns are read, one at a time; a heavy value is compared by
its stored hash. So memory is that of the ids and of one column: some 300 bytes a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from flows.history.changes import Changes, changes, contents_of
from flows.history.columns import Pair, hashes_of, light_series, named, pairs
from flows.history.drift import Balance, Drift, Relabelled, balance, number_drift, relabelled
from stillroom.fields import label_names
from stillroom.operators import Table
from stillroom.snapshots import Snapshot

__all__ = ["ColumnDiff", "Diff", "Example", "Move", "Side", "SplitDiff", "diff"]

# N = rows before, M = rows after, S = rows that both have

EXAMPLES = 20
SHOWN_VALUES = 5
# Columns that tell rows apart, so that their distribution says nothing.
_NO_QUANTITY = ("seed",)


@dataclass(frozen=True)
class Side:
    """One of the two snapshots."""

    name: str
    created: str
    rows: int
    digest: str
    splits: dict[str, int]
    trial: bool


@dataclass(frozen=True)
class SplitDiff:
    """A split in numbers.

    before = same + changed + removed + moved_out; after = same + changed + added + moved_in. A row
    that moved counts as moved, whatever else changed.
    """

    split: str
    before: int
    after: int
    same: int
    changed: int
    added: int
    removed: int
    moved_in: int
    moved_out: int


@dataclass(frozen=True)
class Move:
    """Rows that went from one split to another, with the ids of some."""

    before: str
    after: str
    rows: int
    examples: list[str]


@dataclass(frozen=True)
class Example:
    """A row whose value changed; values of heavy and nested columns are left out. Of numbers, those that changed most come first."""

    sample_id: str
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class ColumnDiff:
    """A column in the rows that both snapshots have: how many differ, by split after; its types where they differ."""

    column: str
    kind: str
    rows: int
    splits: dict[str, int]
    examples: list[Example]
    types: tuple[str, str] | None = None


@dataclass(frozen=True)
class Diff:
    """What differs between two snapshots.

    Args:
        same: whether the two hold just the same.
        splits, total: rows by fate.
        columns: those that differ in some row, in the order of the table.
        only_before, only_after: columns that one of them has.
        balance: class counts by split; `labels`: who became what; `drift`: numbers by split.
        changes: recipe, parameters, packages, proof.
        added, removed, changed: ids of some rows, spread over the classes.
    """

    before: Side
    after: Side
    same: bool
    splits: list[SplitDiff]
    total: SplitDiff
    moves: list[Move]
    columns: list[ColumnDiff]
    only_before: list[str]
    only_after: list[str]
    balance: list[Balance]
    labels: list[Relabelled]
    drift: list[Drift]
    changes: Changes
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def shared(self) -> int:
        """Rows that both snapshots have."""
        return self.total.before - self.total.removed


def diff(before: Snapshot, after: Snapshot) -> Diff:
    """Compare two snapshots, of one name or of two.

    Raises:
        StoreError: the table of one is gone.
    """
    return _Comparison(before, after).diff()


class _Comparison:
    """The rows of two snapshots joined by id: for each of the S shared rows its position on both sides."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.snapshots = (before, after)
        self.tables = (before.table(), after.table())
        self.order = list(dict.fromkeys([*before.splits, *after.splits]))
        self.splits = tuple(_codes(table, self.order) for table in self.tables)
        columns = [snapshot.manifest["table"].get("columns") or {} for snapshot in self.snapshots]
        in_step = all(columns[0].get(name) and columns[0][name] == columns[1].get(name) for name in ("sample_id", "split"))
        # With ids in one order a column of the same digest has the same values, and needn't be read.
        self.equal = {name for name in columns[0] if columns[0][name] == columns[1].get(name)} if in_step else set()
        self.shared_S2, self.alone = self._joined()
        self.changed_S = np.zeros(len(self.shared_S2[0]), bool)

    def _joined(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Positions of the shared rows in both tables, in the order of the table after; of the others on each side."""
        if "sample_id" in self.equal:
            everything = np.arange(self.tables[0].rows)
            return (everything, everything), (everything[:0], everything[:0])
        left, right = (table.frame(["sample_id"]).with_row_index(name) for table, name in zip(self.tables, ("row", "row_after"), strict=True))
        joined = right.join(left, on="sample_id", how="left", maintain_order="left").select("row", "row_after")
        shared = joined.filter(pl.col("row").is_not_null())
        in_both = np.zeros(left.height, bool)
        in_both[shared["row"].to_numpy()] = True
        added = joined.filter(pl.col("row").is_null())["row_after"].to_numpy()
        return (shared["row"].to_numpy(), shared["row_after"].to_numpy()), (np.flatnonzero(~in_both), added)

    def diff(self) -> Diff:
        """Everything, the columns first: they say which rows changed."""
        schemas = [table.schema for table in self.tables]
        columns = [found for pair in pairs(*schemas) if (found := self._column(pair))]
        names = [self._class_names(side) for side in (0, 1)]
        only = [[name for name in one.names if name not in other.names] for one, other in (schemas, schemas[::-1])]
        return Diff(
            before=_side(self.snapshots[0]), after=_side(self.snapshots[1]),
            same=self.snapshots[0].manifest["digest"] == self.snapshots[1].manifest["digest"],
            splits=[self._split(code) for code in range(len(self.order))], total=self._split(None), moves=self._moves(), columns=columns,
            only_before=only[0], only_after=only[1], balance=self._balance(names), labels=self._relabelled(names), drift=self._drift(),
            changes=changes(self.snapshots[0].manifest, self.snapshots[1].manifest, (contents_of(self.snapshots[0]), contents_of(self.snapshots[1]))),
            added=self._ids(1, self._spread(names[1], self.alone[1])), removed=self._ids(0, self._spread(names[0], self.alone[0])),
            changed=self._ids(1, self._spread(names[1], self.shared_S2[1][self.changed_S])),
        )  # fmt: skip

    def _column(self, pair: Pair) -> ColumnDiff | None:
        """Which shared rows differ in a column; None where none does."""
        if pair.stored in self.equal and not pair.names:
            return None
        if pair.comparable:
            hashes = [
                hashes_of(table, pair, field, names)
                for table, field, names in zip(self.tables, (pair.before, pair.after), pair.names or (None, None), strict=True)
            ]
            differs_S = hashes[0][self.shared_S2[0]] != hashes[1][self.shared_S2[1]]
        else:
            filled = [table.frame([pair.stored])[pair.stored].is_not_null().to_numpy() for table in self.tables]
            differs_S = filled[0][self.shared_S2[0]] | filled[1][self.shared_S2[1]]
        rows = int(differs_S.sum())
        kinds = (str(pair.before.type), str(pair.after.type)) if pair.retyped else None
        if not rows and kinds is None:
            return None
        self.changed_S |= differs_S
        counts = np.bincount(self.splits[1][self.shared_S2[1][differs_S]], minlength=len(self.order))
        by_split = {split: int(count) for split, count in zip(self.order, counts, strict=True) if count}
        return ColumnDiff(pair.name, pair.kind, rows, by_split, self._examples(pair, differs_S), kinds)

    def _examples(self, pair: Pair, differs_S: np.ndarray) -> list[Example]:
        where = np.flatnonzero(differs_S)
        if pair.kind == "number" and pair.comparable:
            where = where[np.argsort(-self._size_of_change(pair, where), kind="stable")]
        where = where[:EXAMPLES]
        light = pair.kind in ("label", "number", "text", "other")
        wanted = ["sample_id", *([pair.stored] if light else [])]
        sides = [table.take(rows[where], wanted) for table, rows in zip(self.tables, self.shared_S2, strict=True)]
        ids = sides[1]["sample_id"].to_pylist()
        if not light:
            return [Example(sample_id) for sample_id in ids]
        values = [_told(side[pair.stored].to_pylist(), label_names(side.schema, pair.stored)) for side in sides]
        return [Example(*line) for line in zip(ids, *values, strict=True)]

    def _size_of_change(self, pair: Pair, where: np.ndarray) -> np.ndarray:
        """How far numbers changed; what came, went or is infinite counts as least: it can't be compared."""
        sides = [
            light_series(table, pair.name).cast(pl.Float64).gather(rows[where]).to_numpy() for table, rows in zip(self.tables, self.shared_S2, strict=True)
        ]
        with np.errstate(invalid="ignore"):
            sizes = np.abs(sides[1] - sides[0])
        return np.where(np.isfinite(sizes), sizes, -1.0)

    def _split(self, code: int | None) -> SplitDiff:
        """Rows of one split, or of all, by fate."""

        def count(codes: np.ndarray) -> int:
            return len(codes) if code is None else int((codes == code).sum())

        before_S, after_S = (splits[rows] for splits, rows in zip(self.splits, self.shared_S2, strict=True))
        stayed_S = before_S == after_S
        removed, added = (splits[rows] for splits, rows in zip(self.splits, self.alone, strict=True))
        return SplitDiff(
            split="" if code is None else self.order[code], before=count(self.splits[0]), after=count(self.splits[1]),
            same=count(after_S[stayed_S & ~self.changed_S]), changed=count(after_S[stayed_S & self.changed_S]), added=count(added), removed=count(removed),
            moved_in=count(after_S[~stayed_S]), moved_out=count(before_S[~stayed_S]),
        )  # fmt: skip

    def _moves(self) -> list[Move]:
        before_S, after_S = (splits[rows] for splits, rows in zip(self.splits, self.shared_S2, strict=True))
        found = []
        for start, stop in product(range(len(self.order)), repeat=2):
            where = np.flatnonzero((before_S == start) & (after_S == stop))
            if start != stop and len(where):
                found.append(Move(self.order[start], self.order[stop], len(where), self._ids(1, self.shared_S2[1][where[:EXAMPLES]])))
        return found

    def _class_names(self, side: int) -> pl.Series | None:
        """The class of each row by name, or None where there are no labels."""
        table = self.tables[side]
        if "label" in table.schema.names and (names := label_names(table.schema)):
            return named(light_series(table, "label"), names)
        return next((light_series(table, name).cast(pl.String) for name in ("label_name", "label") if name in table.schema.names and _flat(table, name)), None)

    def _balance(self, names: Sequence[pl.Series | None]) -> list[Balance]:
        if names[0] is None or names[1] is None:
            return []
        order = [name for table in self.tables for name in label_names(table.schema) or ()]
        found = []
        for code, split in enumerate(self.order):
            sides = [series.filter(pl.Series(splits == code)) for series, splits in zip(names, self.splits, strict=True) if series is not None]
            found.append(balance(split, sides[0], sides[1], order))
        return found

    def _relabelled(self, names: Sequence[pl.Series | None]) -> list[Relabelled]:
        """Who became what: the label first, then other columns of labels (a teacher's)."""
        found = []
        if names[0] is not None and names[1] is not None:
            found += relabelled("label", names[0].gather(self.shared_S2[0]), names[1].gather(self.shared_S2[1]))
        for pair in pairs(*(table.schema for table in self.tables)):
            if pair.kind == "label" and pair.name != "label" and pair.stored not in self.equal:
                classes = [label_names(table.schema, pair.name) for table in self.tables]
                sides = [
                    named(light_series(table, pair.name), its_names or ()).gather(rows)
                    for table, its_names, rows in zip(self.tables, classes, self.shared_S2, strict=True)
                ]
                # Another column of labels is null for rows that nobody judged: that is no change of mind.
                both = sides[0].is_not_null() & sides[1].is_not_null()
                found += relabelled(pair.name, sides[0].filter(both), sides[1].filter(both))
        return found

    def _drift(self) -> list[Drift]:
        """Numbers by split, where both have the split and at least one a value."""
        found = []
        for pair in pairs(*(table.schema for table in self.tables)):
            if pair.kind != "number" or pair.name in _NO_QUANTITY or pair.stored in self.equal or not pair.comparable:
                continue
            sides = [light_series(table, pair.name).cast(pl.Float64).fill_null(float("nan")).to_numpy() for table in self.tables]
            for code, split in enumerate(self.order):
                values = [side[splits == code] for side, splits in zip(sides, self.splits, strict=True)]
                if all(len(side) for side in values) and not all(np.isnan(side).all() for side in values):
                    found.append(number_drift(pair.name, split, values[0], values[1]))
        return found

    def _spread(self, names: pl.Series | None, rows: np.ndarray) -> np.ndarray:
        """A few of these rows, each class in turn. A snapshot's order is by hash, so the first ones are nobody's choice."""
        if names is None or len(rows) <= EXAMPLES:
            return rows[:EXAMPLES]
        turn = pl.DataFrame({"row": rows, "label": names.gather(rows)}).with_columns(pl.int_range(pl.len()).over("label").alias("turn"))
        return np.sort(turn.sort("turn", "row").head(EXAMPLES)["row"].to_numpy())

    def _ids(self, side: int, rows: np.ndarray) -> list[str]:
        return [str(sample_id) for sample_id in self.tables[side].take(rows, ["sample_id"])["sample_id"].to_pylist()]


def _codes(table: Table, order: Sequence[str]) -> np.ndarray:
    """The split of each row by its place in `order`."""
    return table.frame(["split"])["split"].replace_strict({split: code for code, split in enumerate(order)}, return_dtype=pl.Int8).to_numpy()


def _side(snapshot: Snapshot) -> Side:
    manifest = snapshot.manifest
    return Side(snapshot.name, manifest["created"], manifest["rows"], manifest["digest"], snapshot.splits, bool(manifest.get("trial")))


def _flat(table: Table, column: str) -> bool:
    import pyarrow.types as types

    return not types.is_nested(table.schema.field(column).type)


def _told(values: list[Any], names: Sequence[str] | None) -> list[Any]:
    """Values as people read them: labels by name, bytes in hexadecimal."""
    if names is not None:
        return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]
    return [value.hex() if isinstance(value, bytes) else value for value in values]
