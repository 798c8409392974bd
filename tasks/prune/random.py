"""prune.random: keep a random choice, the baseline of every other one."""

from typing import TYPE_CHECKING

from stillroom.operators import Draw, select
from tasks.prune._budget import Budget, Verdicts, by_bytes, pools, quotas

if TYPE_CHECKING:
    import polars as pl


class RandomParams(Budget):
    """Parameters of `prune.random`."""


@select(version=1, requires=lambda params: params.columns(), random=True)
@by_bytes
def random(frames: "dict[str, pl.DataFrame]", params: RandomParams, draw: Draw) -> "pl.LazyFrame":
    """Keep a random choice of rows, the same number of each class unless told otherwise.

    A row's luck hangs on the seed and its id alone: a larger budget keeps all that a smaller one
    keeps, and new rows of a class push out few of the old ones.
    """
    samples = frames["samples"]
    verdicts = Verdicts(samples, params)
    classes = pools(samples, params)
    sizes = [len(pool.rows) for pool in classes]
    for pool, quota in zip(classes, quotas(params, samples.height, sizes, sizes), strict=True):
        drawn = pool.rows[draw.order(samples["sample_id"].gather(pool.rows))]
        verdicts.drop(drawn[quota:], f"not among the {quota} drawn from {len(drawn)} in {pool.name}")
    return verdicts.frame()
