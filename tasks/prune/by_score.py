"""prune.by_score: keep the rows at one end, in the middle, or from all over a score's ranking."""

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stillroom.operators import select
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._scores import ScoreBudget, contests, score_of

if TYPE_CHECKING:
    import polars as pl


class ByScoreParams(ScoreBudget):
    """Parameters of `prune.by_score`."""

    order: Literal["easiest", "hardest", "middle", "strata"] = Field(
        description="Which rows stay: the first of the ranking, the last, those around its middle, or the middle one of each of as many equal strata."
    )


@select(version=1, requires=lambda params: [params.score, *params.columns()])
@by_bytes
def by_score(frames: "dict[str, pl.DataFrame]", params: ByScoreParams) -> "pl.LazyFrame":
    """Keep the easiest, the hardest or the middle rows of each class by a score, or some from all over it.

    Rows of a class are ranked from easy to hard, ties by sample id. Of n ranked rows, the hardest
    `cut_off` leave first; then the quota is taken from the easy end, from the hard end, or from the
    middle of what is left, or, with `strata`, the ranking is cut into as many equal parts as rows
    stay, and the middle one of each stays. Infinity ranks as the number that it is: a row that was never learnt has
    an infinite forgetting score and is the hardest. Null and NaN rank nowhere: such rows are rejected.

    Raises:
        InputError: the score is no number, or no row has one.
    """
    samples = frames["samples"]
    score_N = score_of(samples, params.score)
    rank_N = np.zeros(samples.height, np.int32)
    verdicts = Verdicts(samples, params, score_N, rank_N)
    for pool, rows, last, quota in contests(samples, score_N, params, verdicts):
        places, stay = _staying(params.order, last, quota)
        rank_N[rows] = np.arange(1, len(rows) + 1)
        cut = f"the hardest {len(rows) - last} are cut off"
        for leaving, why in ((np.delete(rows[:last], places), stay), (rows[last:], cut)):
            verdicts.drop(leaving, partial(_said, params.score, f"of {len(rows)} in {pool.name}, easiest first; {why}"))
    return verdicts.frame()


def _staying(order: str, ranked: int, quota: int) -> tuple[np.ndarray, str]:
    """The places in the ranking that stay, from 0, and what to say of them."""
    if not quota:
        return np.zeros(0, np.int64), "none stays"
    if order == "strata":
        # The middle of each of `quota` parts of one size, in whole numbers.
        return (2 * np.arange(quota) + 1) * ranked // (2 * quota), f"one of each of {quota} strata stays"
    first = {"easiest": 0, "hardest": ranked - quota, "middle": (ranked - quota) // 2}[order]
    return np.arange(first, first + quota), f"ranks {first + 1} to {first + quota} stay"


def _said(name: str, rest: str, score: float, rank: int) -> str:
    return f"{name} {score:.4g}: rank {rank} {rest}"
