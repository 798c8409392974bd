"""prune.by_score: keep the rows at one end, or in the middle, of a score's ranking."""

from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from schemas.quantities import Fraction
from stillroom.errors import InputError
from stillroom.operators import select
from tasks.prune._budget import Budget, Pool, Verdicts, pools, quotas, rounded

if TYPE_CHECKING:
    import polars as pl

# Which end of a score belongs to the hard rows, by the definitions in docs/operators/prune/by_score.md.
HARD_END = {"el2n": "high", "grand": "high", "forgetting": "high", "entropy": "high", "loss": "high", "aum": "low", "margin": "low", "confidence": "low"}


class ByScoreParams(Budget):
    """Parameters of `prune.by_score`."""

    score: str = Field(description="Column with the score.")
    order: Literal["easiest", "hardest", "middle"] = Field(description="Which rows stay: the first of the ranking, the last, or those around its middle.")
    hard: Literal["high", "low"] | None = Field(default=None, description="The end of the score at which rows are hard; known for " + ", ".join(HARD_END) + ".")
    cut_off: Fraction = Field(
        default=0.0, lt=1, description="Share of each class's ranked rows to leave out first, at the hard end, where wrong labels gather."
    )

    @model_validator(mode="after")
    def _known_end(self) -> Self:
        if self.hard is None and self.score not in HARD_END:
            raise ValueError(f"which end of '{self.score}' is hard isn't known; give hard: high or hard: low")
        return self

    def hard_end(self) -> str:
        """The end of the score at which rows are hard: "high" or "low"."""
        return self.hard or HARD_END[self.score]


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
    score_N = _score(samples, params.score)
    rank_N = np.zeros(samples.height, np.int32)
    verdicts = Verdicts(samples, params, score_N, rank_N)
    classes = pools(samples, params)
    ranked = [_ranked(pool, score_N, samples["sample_id"], params.hard_end() == "high") for pool in classes]
    uncut = [len(rows) - rounded(params.cut_off, len(rows)) for rows in ranked]
    for pool, rows, last, quota in zip(classes, ranked, uncut, quotas(params, samples.height, [len(pool.rows) for pool in classes], uncut), strict=True):
        verdicts.reject(pool.rows[np.isnan(score_N[pool.rows])], f"no {params.score} to rank by: null or NaN")
        first = {"easiest": 0, "hardest": last - quota, "middle": (last - quota) // 2}[params.order]
        stay = f"ranks {first + 1} to {first + quota} stay" if quota else "none stays"
        cut = f"the hardest {len(rows) - last} are cut off"
        rank_N[rows] = np.arange(1, len(rows) + 1)
        for begin, end, why in ((0, first, stay), (first + quota, last, stay), (last, len(rows), cut)):
            verdicts.drop(rows[begin:end], partial(_said, params.score, f"of {len(rows)} in {pool.name}, easiest first; {why}"))
    return verdicts.frame()


def _said(name: str, rest: str, score: float, rank: int) -> str:
    return f"{name} {score:.4g}: rank {rank} {rest}"


def _score(samples: "pl.DataFrame", name: str) -> np.ndarray:
    """The score of each row, floats [N], NaN where there is none."""
    import polars as pl

    column = samples[name]
    if not column.dtype.is_numeric():
        raise InputError(f"score '{name}'", f"holds {column.dtype}, not numbers")
    # Floats without nulls are taken as they lie in the frame's file.
    exact = column if column.dtype.is_float() else column.cast(pl.Float64)
    score_N = exact.fill_null(float("nan")).to_numpy()
    if samples.height and np.isnan(score_N).all():
        raise InputError(f"score '{name}'", f"all {samples.height} rows are null or NaN")
    return score_N


def _ranked(pool: Pool, score_N: np.ndarray, ids: "pl.Series", hard_is_high: bool) -> np.ndarray:
    """The pool's rows that have a score, from easy to hard, ties by id."""
    import polars as pl

    rows = pool.rows[~np.isnan(score_N[pool.rows])]
    hardness_R = score_N[rows] if hard_is_high else -score_N[rows]
    return rows[pl.DataFrame({"hardness": hardness_R, "id": ids.gather(rows)}).select(pl.arg_sort_by("hardness", "id")).to_series().to_numpy()]
