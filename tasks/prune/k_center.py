"""prune.k_center: keep rows so that none that leaves is far from all that stay."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stillroom.operators import select
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._vectors import VectorBudget, contests, on_grid

if TYPE_CHECKING:
    import polars as pl


class KCenterParams(VectorBudget):
    """Parameters of `prune.k_center`."""


@select(version=1, requires=lambda params: params.columns(), vectors=lambda params: [params.vectors])
@by_bytes
def k_center(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: KCenterParams) -> "pl.LazyFrame":
    """Keep rows of each class so that the largest distance of a row to the nearest kept one is small.

    Greedy (Gonzalez 1985, k-center greedy; at most twice the optimum): first the row nearest to the
    class's mean, then always the row farthest from all that are chosen, ties by sample id. So a larger
    budget keeps all that a smaller one keeps. No randomness; neither the order of rows nor the number
    of threads counts. Rows with NaN or infinity in their vector are rejected.
    """
    samples = frames["samples"]
    nearest_N, distance_N = np.zeros(samples.height, np.int64), np.zeros(samples.height)
    verdicts = Verdicts(samples, params, nearest_N, distance_N)
    for pool, rows, vectors_RD, quota in contests(samples, vectors[params.vectors], params, verdicts):
        if not quota:
            verdicts.drop(rows, f"no row of {pool.name} stays")
            continue
        chosen, nearest_R, distance_N[rows] = _spread(vectors_RD, quota)
        nearest_N[rows] = rows[nearest_R]
        verdicts.drop(np.delete(rows, chosen), partial(_said, samples["sample_id"]))
    return verdicts.frame()


def _spread(vectors_RD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the chosen rows in their order, int64 [count]; of each row the nearest chosen one, and the distance to it."""
    grid_RD, step = on_grid(vectors_RD)
    squares_R = np.square(grid_RD).sum(axis=1)
    centre_D = np.rint(grid_RD.mean(axis=0))
    chosen = np.zeros(count, np.int64)
    nearest_R, least_R = np.zeros(len(grid_RD), np.int64), np.full(len(grid_RD), np.inf)
    chosen[0] = np.argmin(squares_R - 2 * (grid_RD @ centre_D))
    for place in range(count):
        if place:
            chosen[place] = np.argmax(least_R)
        row = chosen[place]
        away_R = squares_R + squares_R[row] - 2 * (grid_RD @ grid_RD[row])
        nearer = away_R < least_R
        nearest_R[nearer], least_R[nearer] = row, away_R[nearer]
        least_R[row] = -1  # of twins, too, each is chosen once
    return chosen, nearest_R, np.sqrt(np.maximum(least_R, 0)) * step


def _said(ids: "pl.Series", nearest: int, distance: float) -> str:
    return f"nearest center {ids[nearest]} at distance {distance:.4g}"
