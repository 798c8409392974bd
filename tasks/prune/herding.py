"""prune.herding: keep rows whose mean follows that of their class."""

from typing import TYPE_CHECKING

import numpy as np

from stillroom.operators import select
from tasks.prune._budget import Verdicts
from tasks.prune._vectors import VectorBudget, contests, on_grid

if TYPE_CHECKING:
    import polars as pl


class HerdingParams(VectorBudget):
    """Parameters of `prune.herding`."""


@select(version=1, requires=lambda params: params.columns(), vectors=lambda params: [params.vectors])
def herding(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: HerdingParams) -> "pl.LazyFrame":
    """Keep rows of each class so that the mean of what is kept stays near the mean of all.

    Greedy (Welling, Herding Dynamical Weights to Learn, ICML 2009): row k + 1 is the one that
    minimises ||(k + 1) mu - sum of those chosen - x||, ties by sample id. So a larger budget keeps all
    that a smaller one keeps. No randomness; neither the order of rows nor the number of threads counts.
    Rows with NaN or infinity in their vector are rejected.
    """
    samples = frames["samples"]
    verdicts = Verdicts(samples, params)
    for pool, rows, vectors_RD, quota in contests(samples, vectors[params.vectors], params, verdicts):
        verdicts.drop(np.delete(rows, _herded(vectors_RD, quota)), f"not among the {quota} of {len(rows)} whose mean is that of {pool.name}")
    return verdicts.frame()


def _herded(vectors_RD: np.ndarray, count: int) -> np.ndarray:
    """Positions of the chosen rows, int64 [count], in the order in which they are chosen."""
    # Everything is multiplied by the number of rows, so that the mean is whole as well and ties are ties;
    # what is aimed at may lie outside of where the rows are.
    grid_RD, _ = on_grid(vectors_RD, spare_bits=int(np.ceil((np.log2(len(vectors_RD)) + 4) / 2)))
    chosen, squares_R = np.zeros(count, np.int64), len(grid_RD) * np.square(grid_RD).sum(axis=1)
    total_D, sum_D = grid_RD.sum(axis=0), np.zeros(grid_RD.shape[1])
    for place in range(count):
        aim_D = (place + 1) * total_D - len(grid_RD) * sum_D
        chosen[place] = np.argmin(squares_R - 2 * (grid_RD @ aim_D))
        sum_D += grid_RD[chosen[place]]
        squares_R[chosen[place]] = np.inf
    return chosen
