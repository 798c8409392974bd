"""prune.herding: keep rows whose mean follows that of their class."""

from typing import TYPE_CHECKING

import numpy as np

from stillroom.operators import select
from tasks.prune._budget import Verdicts, pools, quotas
from tasks.prune._vectors import VectorBudget, finite, on_grid, scaled

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
    samples, vectors_ND = frames["samples"], vectors[params.vectors]
    verdicts = Verdicts(samples, params)
    classes = pools(samples, params)
    usable = finite(verdicts, classes, vectors_ND, params.vectors)
    kept = quotas(params, samples.height, [len(pool.rows) for pool in classes], [len(rows) for rows in usable])
    for pool, rows, quota in zip(classes, usable, kept, strict=True):
        by_id = rows[samples["sample_id"].gather(rows).arg_sort().to_numpy()]
        chosen = _herded(scaled(vectors_ND[by_id], params.normalise), quota)
        verdicts.drop(np.delete(by_id, chosen), f"not among the {quota} of {len(rows)} whose mean is that of {pool.name}")
    return verdicts.frame()


def _herded(vectors_ND: np.ndarray, count: int) -> np.ndarray:
    """Positions of the chosen rows, int64 [count], in the order in which they are chosen."""
    chosen = np.zeros(count, np.int64)
    if not count:
        return chosen
    grid_ND, _ = on_grid(vectors_ND)
    # Half the bits less four: what is aimed at may lie outside of where the rows are.
    grid_ND = np.rint(grid_ND / 16)
    squares_N = np.square(grid_ND).sum(axis=1)
    mean_D, sum_D = grid_ND.sum(axis=0) / len(grid_ND), np.zeros(grid_ND.shape[1])
    for place in range(count):
        aim_D = np.rint((place + 1) * mean_D - sum_D)
        chosen[place] = np.argmin(squares_N - 2 * (grid_ND @ aim_D))
        sum_D += grid_ND[chosen[place]]
        squares_N[chosen[place]] = np.inf
    return chosen
