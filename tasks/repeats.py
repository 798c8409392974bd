"""Values that stand more than once among millions, by eight bytes each."""

from collections.abc import Iterable

import polars as pl

__all__ = ["hashed", "met_twice"]


def hashed(values: pl.Series) -> pl.Series:
    """A hash of each value, uint64; of equal values the same, and rarely of others."""
    return values.hash(seed=0)


def met_twice(hashes: Iterable[pl.Series]) -> pl.Series:
    """The hashes that came more than once, in all of the series together: whoever has them may have a twin, all others have none."""
    met = pl.concat([pl.Series(dtype=pl.UInt64), *hashes]).sort()
    return met.filter(met == met.shift(1)).unique()
