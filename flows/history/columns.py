"""Columns of two snapshots as numbers that can be compared: a 64-bit hash a value, one column at a time.

A million values are 8 MB, whatever a value is, so memory doesn't grow with the width of a table.
Two values that differ have the same hash once in 2^64 comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.types as types

from stillroom.fields import heavy_kind, label_names
from stillroom.operators import Table

__all__ = ["Kind", "Pair", "hashes_of", "light_series", "named", "pairs"]

# N = rows of a table

Kind = Literal["label", "number", "text", "nested", "heavy", "other"]

# Values that aren't one number or one text are read some at a time: a row of views has kilobytes.
_NESTED_ROWS, _HEAVY_ROWS = 16_384, 64


@dataclass(frozen=True)
class Pair:
    """A column that two tables share.

    Args:
        name: what people call it: `image` for the pair of `image_hash`.
        stored: the column that is read: a heavy column's hashes where there are some.
        before, after: its fields.
    """

    name: str
    stored: str
    kind: Kind
    before: pa.Field
    after: pa.Field

    @property
    def retyped(self) -> bool:
        """Whether it has another type."""
        return self.before.type != self.after.type

    @property
    def common(self) -> pl.DataType | None:
        """The type in which values of two types are equal if they are the same number, or None."""
        if not self.retyped:
            return None
        if all(types.is_integer(field.type) for field in (self.before, self.after)):
            return pl.Int128()
        return pl.Float64() if all(_is_number(field.type) for field in (self.before, self.after)) else None

    @property
    def comparable(self) -> bool:
        """Whether a value before can equal one after."""
        plain = [_plain(field.type) for field in (self.before, self.after)]
        return plain[0] == plain[1] or self.common is not None

    @property
    def names(self) -> tuple[list[str], list[str]] | None:
        """The class names of a label whose classes are others after than before: then labels are compared by name."""
        before, after = (label_names(pa.schema([field]), field.name) for field in (self.before, self.after))
        return (before, after) if before and after and before != after else None


def pairs(before: pa.Schema, after: pa.Schema) -> list[Pair]:
    """The columns that both schemas have, without id and split; of a heavy column and its hashes, one."""
    both = [name for name in before.names if name in after.names and name not in ("sample_id", "split")]
    hashed = {f"{name}_hash" for name in both if heavy_kind(before.field(name))} & set(both)
    found = []
    for name in both:
        if name in hashed:
            continue
        stored = f"{name}_hash" if f"{name}_hash" in hashed else name
        fields = (before.field(name), after.field(name)) if stored == name else (before.field(stored), after.field(stored))
        found.append(Pair(name, stored, "heavy" if heavy_kind(before.field(name)) else _kind(before.field(name)), *fields))
    return found


def hashes_of(table: Table, pair: Pair, field: pa.Field, names: Sequence[str] | None = None) -> np.ndarray:
    """The hash of each value of a column, uint64 [N]; nulls are equal to each other, and so are NaNs."""
    if pair.kind in ("nested", "heavy") and not types.is_fixed_size_binary(field.type):
        rows = _HEAVY_ROWS if pair.kind == "heavy" else _NESTED_ROWS
        parts = [pl.Series(_decoded(batch.column(0))).hash().to_numpy() for batch in table.scan([pair.stored], batch_size=rows)] if table.rows else []
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    series = light_series(table, pair.stored)
    if names is not None:
        series = named(series, names)
    elif pair.common is not None:
        series = series.cast(pair.common)
    return series.hash().to_numpy()


def light_series(table: Table, column: str) -> pl.Series:
    """A light column of all rows."""
    series = table.frame([column])[column]
    # The codes of a categorical column mean something in its own table only.
    return series.cast(pl.String) if series.dtype in (pl.Categorical, pl.Enum) else series


def named(codes: pl.Series, names: Sequence[str]) -> pl.Series:
    """Labels by name; one that has none by its number."""
    place = codes.cast(pl.Int64)
    known = place.is_between(0, len(names) - 1)
    found = pl.Series(list(names), dtype=pl.String).gather(pl.select(pl.when(known).then(place).otherwise(None)).to_series())
    return pl.select(pl.when(known).then(found).otherwise(place.cast(pl.String))).to_series().rename(codes.name)


def _kind(field: pa.Field) -> Kind:
    if label_names(pa.schema([field]), field.name) and types.is_integer(field.type):
        return "label"
    if _is_number(field.type):
        return "number"
    if _plain(field.type) == pa.large_string():
        return "text"
    return "nested" if types.is_nested(field.type) else "other"


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without what makes no difference to a value: how text is encoded, names inside lists."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def _decoded(values: Any) -> pa.Array:
    return values.dictionary_decode() if types.is_dictionary(values.type) else values
