"""What choices by a score share: which end is hard, the ranking, and the cut-off at its hard end."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from schemas.quantities import Fraction
from stillroom.errors import InputError
from tasks.hardness import KNOWN_ENDS, hard_end
from tasks.prune._budget import Budget, Pool, Verdicts, pools, quotas, rounded

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ScoreBudget", "contests", "score_of"]


class ScoreBudget(Budget):
    """The parameters that choices by a score share."""

    score: str = Field(description="Column with the score.")
    hard: Literal["high", "low"] | None = Field(default=None, description=KNOWN_ENDS)
    cut_off: Fraction = Field(
        default=0.0, lt=1, description="Share of each class's ranked rows to leave out first, at the hard end, where wrong labels gather."
    )

    @model_validator(mode="after")
    def _known_end(self) -> Self:
        hard_end(self.score, self.hard)
        return self

    def hard_end(self) -> str:
        """The end of the score at which rows are hard: "high" or "low"."""
        return hard_end(self.score, self.hard)


def score_of(samples: "pl.DataFrame", name: str) -> np.ndarray:
    """The score of each row, floats [N], NaN where there is none.

    Raises:
        InputError: it is no number, or no row has one.
    """
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


def contests(samples: "pl.DataFrame", score_N: np.ndarray, params: ScoreBudget, verdicts: Verdicts) -> Iterator[tuple[Pool, np.ndarray, int, int]]:
    """Of each class: its rows from easy to hard, ties by id, how many of these aren't cut off, and how many stay; rows without a score are rejected."""
    classes = pools(samples, params)
    rankings = [_ranked(pool, score_N, samples["sample_id"], params.hard_end()) for pool in classes]
    uncut = [len(rows) - rounded(params.cut_off, len(rows)) for rows in rankings]
    kept = quotas(params, samples.height, [len(pool.rows) for pool in classes], uncut)
    for pool, rows, last, quota in zip(classes, rankings, uncut, kept, strict=True):
        verdicts.reject(pool.rows[np.isnan(score_N[pool.rows])], f"no {params.score} to rank by: null or NaN")
        yield pool, rows, last, quota


def _ranked(pool: Pool, score_N: np.ndarray, ids: "pl.Series", end: str) -> np.ndarray:
    """The pool's rows that have a score, from easy to hard, ties by id."""
    import polars as pl

    rows = pool.rows[~np.isnan(score_N[pool.rows])]
    hardness_R = score_N[rows] if end == "high" else -score_N[rows]
    return rows[pl.DataFrame({"hardness": hardness_R, "id": ids.gather(rows)}).select(pl.arg_sort_by("hardness", "id")).to_series().to_numpy()]
