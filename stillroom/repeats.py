"""Values that stand more than once among millions, by eight bytes each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["hashed", "met_twice"]


def hashed(values: "pa.Array | pl.Series") -> np.ndarray:
    """A hash of each value, uint64 [N]; of equal values the same, and rarely of others. Another version of Polars may hash otherwise."""
    import polars as pl

    return pl.Series(values).hash(seed=0).to_numpy()


def met_twice(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """The hashes, uint64, that came more than once in all of the arrays together: whoever has one may have a twin, all others have none."""
    met = np.concatenate([np.zeros(0, np.uint64), *hashes])
    met.sort()
    return np.unique(met[1:][met[1:] == met[:-1]])
