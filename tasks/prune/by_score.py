"""prune.by_score: keep the rows at one end, or in the middle, of a score's ranking."""

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stillroom.operators import select
from tasks.prune._budget import Verdicts
from tasks.prune._scores import ScoreBudget, contests, score_of

if TYPE_CHECKING:
    import polars as pl


class ByScoreParams(ScoreBudget):
    """Parameters of `prune.by_score`."""

    order: Literal["easiest", "hardest", "middle"] = Field(description="Which rows stay: the first of the ranking, the last, or those around its middle.")


@select(version=1, requires=lambda params: [params.score, *params.columns()])
def by_score(frames: "dict[str, pl.DataFrame]", params: ByScoreParams) -> "pl.LazyFrame":
    """Keep the easiest, the hardest or the middle rows of each class by a score.

    Rows of a class are ranked from easy to hard, ties by sample id. Of n ranked rows, the hardest
    `cut_off` leave first; then the quota is taken from the easy end, from the hard end, or from the
    middle of what is left. Infinity ranks as the number that it is: a row that was never learnt has
    an infinite forgetting score and is the hardest. Null and NaN rank nowhere: such rows are rejected.

    Raises:
        InputError: the score is no number, or no row has one.
    """
    samples = frames["samples"]
    score_N = score_of(samples, params.score)
    rank_N = np.zeros(samples.height, np.int32)
    verdicts = Verdicts(samples, params, score_N, rank_N)
    for pool, rows, last, quota in contests(samples, score_N, params, verdicts):
        first = {"easiest": 0, "hardest": last - quota, "middle": (last - quota) // 2}[params.order]
        stay = f"ranks {first + 1} to {first + quota} stay" if quota else "none stays"
        cut = f"the hardest {len(rows) - last} are cut off"
        rank_N[rows] = np.arange(1, len(rows) + 1)
        for begin, end, why in ((0, first, stay), (first + quota, last, stay), (last, len(rows), cut)):
            verdicts.drop(rows[begin:end], partial(_said, params.score, f"of {len(rows)} in {pool.name}, easiest first; {why}"))
    return verdicts.frame()


def _said(name: str, rest: str, score: float, rank: int) -> str:
    return f"{name} {score:.4g}: rank {rank} {rest}"
