"""prune.herding: keep rows whose mean follows that of their class."""

from typing import TYPE_CHECKING

import numpy as np

from stillroom.operators import select
from tasks.coverage import herded
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._vectors import VectorBudget, contests

if TYPE_CHECKING:
    import polars as pl


class HerdingParams(VectorBudget):
    """Parameters of `prune.herding`."""


@select(version=1, requires=lambda params: params.columns(), vectors=lambda params: [params.vectors])
@by_bytes
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
        verdicts.drop(np.delete(rows, herded(vectors_RD, quota)), f"not among the {quota} of {len(rows)} whose mean is that of {pool.name}")
    return verdicts.frame()
