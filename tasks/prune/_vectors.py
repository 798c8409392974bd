"""What choices by vectors share: who competes with whom for how many places."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from tasks.coverage import on_grid
from tasks.prune._budget import Budget, Pool, Verdicts, pools, quotas

if TYPE_CHECKING:
    import polars as pl

__all__ = ["VectorBudget", "contests", "finite", "on_grid", "scaled"]

# Entries that are looked at in one go.
_BLOCK = 1 << 22

# N rows, R of them in a contest, D numbers a row


class VectorBudget(Budget):
    """The parameters that choices by vectors share."""

    vectors: str = Field(default="embedding", description="Vector column between whose values distances are taken.")
    normalise: bool = Field(default=False, description="Scale each vector to length 1 first, so that distance grows with the angle alone.")


def contests(samples: "pl.DataFrame", vectors_ND: np.ndarray, params: VectorBudget, verdicts: Verdicts) -> Iterator[tuple[Pool, np.ndarray, np.ndarray, int]]:
    """Of each class: the rows that compete in the order of their ids, their vectors (of length 1 where asked), and how many stay.

    Rows with NaN or infinity in their vector are rejected. A class of which none is left has no contest.
    """
    classes = pools(samples, params)
    finite_N = finite(vectors_ND)
    usable = [finite_N[pool.rows] for pool in classes]
    kept = quotas(params, samples.height, [len(pool.rows) for pool in classes], [int(finite_R.sum()) for finite_R in usable])
    for pool, finite_R, quota in zip(classes, usable, kept, strict=True):
        verdicts.reject(pool.rows[~finite_R], f"{params.vectors} holds NaN or infinity")
        rows = pool.rows[finite_R]
        by_id = rows[samples["sample_id"].gather(rows).arg_sort().to_numpy()]
        if len(by_id):
            yield pool, by_id, scaled(vectors_ND[by_id], params.normalise), quota


def scaled(vectors_ND: np.ndarray, normalise: bool) -> np.ndarray:
    """The vectors, each of length 1 where asked (float64); one of zeros stays so."""
    if not normalise:
        return vectors_ND
    lengths_N = np.sqrt(np.square(vectors_ND, dtype=np.float64).sum(axis=1, keepdims=True))
    return vectors_ND / np.where(lengths_N == 0, 1, lengths_N)


def finite(vectors_ND: np.ndarray) -> np.ndarray:
    """Whether a row's numbers are all finite, bool [N]; looked at in blocks, since the vectors may lie in a file."""
    rows = max(1, _BLOCK // vectors_ND.shape[1])
    blocks = [np.isfinite(vectors_ND[start : start + rows]).all(axis=1) for start in range(0, len(vectors_ND), rows)]
    return np.concatenate(blocks) if blocks else np.zeros(0, bool)
