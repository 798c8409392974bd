"""prune.moderate: keep the rows that are neither near their class's center nor far from it."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stillroom.operators import select
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._vectors import VectorBudget, contests, on_grid

if TYPE_CHECKING:
    import polars as pl


class ModerateParams(VectorBudget):
    """Parameters of `prune.moderate`."""


@select(version=1, requires=lambda params: params.columns(), vectors=lambda params: [params.vectors])
@by_bytes
def moderate(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: ModerateParams) -> "pl.LazyFrame":
    """Keep the rows of each class whose distance to the class's mean is nearest to the median distance.

    Moderate Coreset (Xia et al., ICLR 2023): outliers and mislabelled rows lie far from the mean, rows
    that say little near it. Ties by sample id; a larger budget keeps all that a smaller one keeps. No
    randomness. Rows with NaN or infinity in their vector are rejected.
    """
    samples = frames["samples"]
    distance_N, rank_N = np.zeros(samples.height), np.zeros(samples.height, np.int32)
    verdicts = Verdicts(samples, params, distance_N, rank_N)
    for pool, rows, vectors_RD, quota in contests(samples, vectors[params.vectors], params, verdicts):
        distance_R = distance_N[rows] = _from_mean(vectors_RD)
        median = float(np.median(distance_R))
        ranked = rows[np.argsort(np.abs(distance_R - median), kind="stable")]
        rank_N[ranked] = np.arange(1, len(ranked) + 1)
        verdicts.drop(ranked[quota:], partial(_said, median, f"of {len(ranked)} in {pool.name} by closeness to it; the first {quota} stay"))
    return verdicts.frame()


def _from_mean(vectors_RD: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row to the mean of all, float64 [R]."""
    grid_RD, step = on_grid(vectors_RD)
    # The mean is rounded as well, so that sums are exact and no rank depends on threads.
    return np.sqrt(np.square(grid_RD - np.rint(grid_RD.mean(axis=0))).sum(axis=1)) * step


def _said(median: float, rest: str, distance: float, rank: int) -> str:
    return f"{distance:.4g} from the mean, where the median is {median:.4g}: rank {rank} {rest}"
