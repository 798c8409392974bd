"""prune.d2: keep rows that are hard, and so are those around them, but not many from one place."""

import heapq
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from stillroom.operators import select
from tasks.neighbours import nearest
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._scores import ScoreBudget, contests, score_of
from tasks.prune._vectors import finite, scaled

if TYPE_CHECKING:
    import polars as pl

# N rows, R of them in a contest, K neighbours of a row


class D2Params(ScoreBudget):
    """Parameters of `prune.d2`."""

    vectors: str = Field(default="embedding", description="Vector column between whose values distances are taken.")
    normalise: bool = Field(default=False, description="Scale each vector to length 1 first, so that distance grows with the angle alone.")
    neighbours: int = Field(default=10, ge=1, description="Nearest rows of its class that a row hears from, and whose scores it lowers when it is chosen.")
    gamma: float = Field(
        default=1.0, ge=0, description="A message over distance d counts exp(-gamma d²), with d² in units of its mean over all neighbours in the class."
    )


@select(version=1, requires=lambda params: [params.score, *params.columns()], vectors=lambda params: [params.vectors])
@by_bytes
def d2(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: D2Params) -> "pl.LazyFrame":
    """Keep rows by difficulty and diversity: messages on the graph of nearest neighbours.

    D2 pruning (Maharana, Yadav and Bansal, ICLR 2024), within each class: the hardest `cut_off` of the
    ranked rows leave; difficulty is scaled to 0 to 1; each row adds to its own what its neighbours'
    weigh; then always the row with the most is chosen, ties by sample id, and its neighbours lose what
    it has, weighed alike. So a larger budget keeps all that a smaller one keeps. No randomness; neither
    the order of rows nor the number of threads counts. Rows without a score, or with NaN or infinity in
    their vector, are rejected.

    Raises:
        InputError: the score is no number, or no row has one.
    """
    samples = frames["samples"]
    vectors_ND = vectors[params.vectors]
    usable_N = finite(vectors_ND)
    score_N = score_of(samples, params.score)
    ranked_N = np.where(usable_N, score_N, np.nan)
    left_N = np.zeros(samples.height)
    verdicts = Verdicts(samples, params, score_N, left_N)
    sign = 1 if params.hard_end() == "high" else -1
    for pool, rows, last, quota in contests(samples, ranked_N, params, verdicts):
        verdicts.reject(pool.rows[~usable_N[pool.rows]], f"{params.vectors} holds NaN or infinity")
        verdicts.drop(rows[last:], partial(_cut, params.score, f"the hardest {len(rows) - last} of {len(rows)} in {pool.name} are cut off"))
        by_id = rows[:last][samples["sample_id"].gather(rows[:last]).arg_sort().to_numpy()]
        if not len(by_id):
            continue
        others_RK, squares_RK = nearest(scaled(vectors_ND[by_id], params.normalise), min(params.neighbours, len(by_id) - 1))
        weight_RK = _weights(squares_RK, params.gamma)
        chosen, left_N[by_id] = picked(_difficulty(sign * score_N[by_id]), others_RK, weight_RK, quota)
        verdicts.drop(np.delete(by_id, chosen), partial(_said, params.score, f"{quota} of {last} in {pool.name} had more when they were chosen"))
    return verdicts.frame()


def _difficulty(hardness_R: np.ndarray) -> np.ndarray:
    """From 0 for the easiest to 1 for the hardest, float64 [R]; 1 where all are alike. Infinite ones are as far as the outermost finite one."""
    finite_R = hardness_R[np.isfinite(hardness_R)].astype(np.float64)
    if not len(finite_R) or finite_R.min() == finite_R.max():
        return np.ones(len(hardness_R))
    low, high = finite_R.min(), finite_R.max()
    return (np.clip(hardness_R.astype(np.float64), low, high) - low) / (high - low)


def _weights(squares_RK: np.ndarray, gamma: float) -> np.ndarray:
    """The kernel at each neighbour, float64 [R, K]."""
    mean = squares_RK.mean() if squares_RK.size else 0.0
    return np.exp(-gamma * squares_RK / mean) if mean else np.ones_like(squares_RK)


def picked(difficulty_R: np.ndarray, others_RK: np.ndarray, weight_RK: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Messages forward once, then greedily; of equal rows the first.

    Args:
        difficulty_R: 0 or more.
        others_RK: each row's neighbours, positions.
        weight_RK: what a message between them counts, 0 to 1.
        count: how many, 0 to R.

    Returns:
        Positions of the chosen rows in their order, int64 [count]; what each row had in the end, the chosen ones when they were chosen.
    """
    has_R = difficulty_R + (weight_RK * difficulty_R[others_RK]).sum(axis=1)
    # Of each row the heap's newest entry counts, since what it has only falls: older ones are passed over.
    heap = [(-float(has), row) for row, has in enumerate(has_R)]
    heapq.heapify(heap)
    is_chosen_R = np.zeros(len(has_R), bool)
    chosen = np.zeros(count, np.int64)
    for place in range(count):
        while True:
            lost, row = heapq.heappop(heap)
            if not is_chosen_R[row] and -lost == has_R[row]:
                break
        chosen[place], is_chosen_R[row] = row, True
        for other, weight in zip(others_RK[row].tolist(), weight_RK[row].tolist(), strict=True):
            if not is_chosen_R[other] and (message := weight * max(-lost, 0.0)):
                has_R[other] -= message
                heapq.heappush(heap, (-float(has_R[other]), other))
    return chosen, has_R


def _cut(name: str, why: str, score: float, left: float) -> str:
    return f"{name} {score:.4g}: {why}"


def _said(name: str, why: str, score: float, left: float) -> str:
    return f"{name} {score:.4g}: {left:.4g} is left of it and its neighbours'; {why}"
