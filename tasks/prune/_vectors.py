"""What choices by vectors share: rows without a usable vector, lengths, and a grid on which sums are exact."""

import numpy as np
from pydantic import Field

from tasks.prune._budget import Budget, Pool, Verdicts

__all__ = ["VectorBudget", "finite", "on_grid", "scaled"]

# N rows, D numbers a row


class VectorBudget(Budget):
    """The parameters that choices by vectors share."""

    vectors: str = Field(default="embedding", description="Vector column between whose values distances are taken.")
    normalise: bool = Field(default=False, description="Scale each vector to length 1 first, so that distance grows with the angle alone.")


def finite(verdicts: Verdicts, classes: list[Pool], vectors_ND: np.ndarray, name: str) -> list[np.ndarray]:
    """The rows of each class whose vector is one; those with NaN or infinity in it are rejected."""
    found = []
    for pool in classes:
        usable = np.isfinite(vectors_ND[pool.rows]).all(axis=1)
        verdicts.reject(pool.rows[~usable], f"{name} holds NaN or infinity")
        found.append(pool.rows[usable])
    return found


def scaled(vectors_ND: np.ndarray, normalise: bool) -> np.ndarray:
    """The vectors, each of length 1 where asked (float64); one of zeros stays so."""
    if not normalise:
        return vectors_ND
    lengths_N = np.sqrt(np.square(vectors_ND, dtype=np.float64).sum(axis=1, keepdims=True))
    return vectors_ND / np.where(lengths_N == 0, 1, lengths_N)


def on_grid(vectors_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Vectors in whole multiples of a power of two, float64 [N, D], and that power.

    BLAS adds in an order that depends on threads and machine. Of whole numbers below 2^53 every
    order gives the same sum: each is kept to so many bits that D squares of differences fit.
    """
    bits = (53 - 2 - int(np.ceil(np.log2(vectors_ND.shape[1])))) // 2
    largest = float(np.abs(vectors_ND).max())
    step = 2.0 ** (int(np.frexp(largest)[1]) - bits)
    grid_ND = vectors_ND.astype(np.float64)
    grid_ND /= step
    return np.rint(grid_ND, out=grid_ND), step
