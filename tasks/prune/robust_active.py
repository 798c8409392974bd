"""prune.robust_active: which rows a teacher should label: those that the student needs, and few that the teacher gets wrong."""

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.quantities import Fraction
from stillroom.errors import InputError
from stillroom.operators import Draw, select
from tasks.prune._budget import Budget, Verdicts, by_bytes, pools, quotas
from tasks.prune._scores import score_of

if TYPE_CHECKING:
    import polars as pl

# N rows, R of them in a contest

# Of a row that the student is sure of, so that all chances stay finite.
_LEAST_GAIN = 1e-6


class RobustActiveParams(Budget):
    """Parameters of `prune.robust_active`."""

    margin: str = Field(default="margin", description="Column with the student's margin, 0 to 1: how far its first class leads the second.")
    teacher_accuracy: Fraction = Field(gt=0.5, description="Share of these rows that the teacher labels rightly, as measured on validation; above 50%.")
    balance: Literal["label", "proportional", "none"] = Field(
        default="none", description="As in the other choices; rows that wait for a label have none, so classes don't count unless told."
    )


@select(
    version=1,
    requires=lambda params: [params.margin, *params.columns()],
    adds={"sampling_weight": pa.float32()},
    random=True,
)
@by_bytes
def robust_active(frames: "dict[str, pl.DataFrame]", params: RobustActiveParams, draw: Draw) -> "pl.LazyFrame":
    """Keep the rows to be labelled by a teacher that errs, drawn by what the student would gain in the worst case.

    Robust Active Distillation (Baykal et al., ICLR 2023). A row's gain is g = 1 - margin, and a wrong
    label takes away what a right one gives. The probabilities that are best against the worst choice
    of m wrong rows, m = (1 - `teacher_accuracy`) · R, are proportional to 1/g on the k rows of largest
    gain and 0 elsewhere, with the k that maximises (k - 2m) / sum of 1/g over them. Rows are drawn with
    them without replacement; a row's luck hangs on the seed and its id, so a larger budget keeps all that
    a smaller one keeps. When those k are used up, the others follow from the largest gain down.
    `sampling_weight` (float32, 0 to 1) is the probability. Rows without a margin are rejected.

    Raises:
        InputError: margins outside 0 to 1.
    """
    import polars as pl

    samples = frames["samples"]
    margin_N = score_of(samples, params.margin).astype(np.float64)
    known_N = ~np.isnan(margin_N)
    if ((margin_N < 0) | (margin_N > 1)).any():
        raise InputError(f"margin '{params.margin}'", "lies outside 0 to 1", "the lead of the first class in probability is needed: score.predictions gives it")
    verdicts = Verdicts(samples, params, margin_N)
    weight_N = np.zeros(samples.height)
    classes = pools(samples, params)
    kept = quotas(params, samples.height, [len(pool.rows) for pool in classes], [int(known_N[pool.rows].sum()) for pool in classes])
    for pool, quota in zip(classes, kept, strict=True):
        verdicts.reject(pool.rows[~known_N[pool.rows]], f"no {params.margin}: null or NaN")
        rows = pool.rows[known_N[pool.rows]]
        if not len(rows):
            continue
        ids = samples["sample_id"].gather(rows)
        gain_R = np.maximum(1 - margin_N[rows], _LEAST_GAIN)
        ranked = pl.DataFrame({"margin": margin_N[rows], "id": ids}).select(pl.arg_sort_by("margin", "id")).to_series().to_numpy()
        probability_R = weight_N[rows] = sampling_weights(gain_R, ranked, (1 - params.teacher_accuracy) * len(rows))
        # The least of exponential waiting times of these rates is a draw by them, the next one a draw from the rest.
        uniform_R = draw.uniform(ids.to_list(), 1)[:, 0]
        wait_R = np.where(probability_R > 0, -np.log1p(-uniform_R) * gain_R, np.inf)
        order = ranked[np.argsort(wait_R[ranked], kind="stable")]
        support = int((probability_R > 0).sum())
        verdicts.drop(rows[order[quota:]], partial(_said, params.margin, f"not among the {quota} drawn from the {support} of {len(rows)} in {pool.name}"))
    return verdicts.frame(sampling_weight=pl.Series(weight_N, dtype=pl.Float32))


def sampling_weights(gain_R: np.ndarray, ranked: np.ndarray, wrong: float) -> np.ndarray:
    """The probabilities that do best against the worst `wrong` rows, float64 [R].

    Args:
        gain_R: what a right label is worth, above 0.
        ranked: positions from the largest gain down.
        wrong: how many of the rows the teacher gets wrong, below R / 2.
    """
    inverse_R = 1 / gain_R[ranked]
    worth_R = (np.arange(1, len(ranked) + 1) - 2 * wrong) / np.cumsum(inverse_R)
    support = int(worth_R.argmax()) + 1
    weights_R = np.zeros(len(gain_R))
    weights_R[ranked[:support]] = inverse_R[:support] / inverse_R[:support].sum()
    return weights_R


def _said(name: str, why: str, margin: float) -> str:
    return f"{name} {margin:.4g}: {why}"
