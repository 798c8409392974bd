"""prune.facility_location: keep rows that stand for the others, each with the weight of those that it stands for."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.operators import Draw, select
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._vectors import VectorBudget, contests, on_grid

if TYPE_CHECKING:
    import polars as pl

# N rows, R of them in a contest, B candidates of a block, D numbers a row

# Entries of a block of distances: 32 MiB in float64.
_BLOCK = 1 << 22
_FIRST_LOT = 8


class FacilityLocationParams(VectorBudget):
    """Parameters of `prune.facility_location`."""

    vectors: str = Field(default="gradient", description="Vector column between whose values distances are taken; `score.gradients` makes one.")
    candidates: int = Field(default=20_000, ge=100, description="Of a class of more rows, as many are drawn that may stay; they stand for all rows.")


@select(
    version=1,
    requires=lambda params: params.columns(),
    vectors=lambda params: [params.vectors],
    adds={"weight": pa.float32()},
    random=True,
)
@by_bytes
def facility_location(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: FacilityLocationParams, draw: Draw) -> "pl.LazyFrame":
    """Keep rows of each class that maximise the facility location of their gradients, with weights.

    F(S) = sum over all rows of max over S of (c - distance), greedily (lazy, and exactly what naive
    greedy chooses), ties by sample id: at least 1 - 1/e of the largest F. So a larger budget keeps all
    that a smaller one keeps. `weight` (float32, above 0) is the number of rows that have this one as
    their nearest, itself included, scaled so that the weights of all kept rows sum to their number:
    a loss weighed by it follows that of the whole table (Liu and Mirzasoleiman, Data-Efficient
    Augmentation, NeurIPS 2022; Mirzasoleiman et al., CRAIG, ICML 2020). No randomness up to
    `candidates` rows a class; neither the order of rows nor the number of threads counts. Rows with
    NaN or infinity in their vector are rejected.
    """
    import polars as pl

    samples = frames["samples"]
    ids = samples["sample_id"]
    nearest_N, distance_N = np.zeros(samples.height, np.int64), np.zeros(samples.height)
    stands_for_N = np.zeros(samples.height)
    verdicts = Verdicts(samples, params, nearest_N, distance_N)
    for pool, rows, vectors_RD, quota in contests(samples, vectors[params.vectors], params, verdicts):
        if not quota:
            verdicts.drop(rows, f"no row of {pool.name} stays")
            continue
        drawn = np.arange(len(rows)) if len(rows) <= params.candidates else np.sort(draw.order(ids.gather(rows))[: max(params.candidates, quota)])
        chosen, nearest_R, distance_N[rows] = located(vectors_RD, drawn, quota)
        nearest_N[rows] = rows[nearest_R]
        stands_for_N[rows] = np.bincount(nearest_R, minlength=len(rows))
        verdicts.drop(np.delete(rows, chosen), partial(_said, ids))
    total = stands_for_N.sum()
    scale = np.count_nonzero(stands_for_N) / total if total else 0.0
    weight = pl.Series(stands_for_N * scale, dtype=pl.Float32)
    return verdicts.frame(weight=weight.set(weight == 0, None))


def located(vectors_RD: np.ndarray, candidates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose rows by lazy greedy; of equal gains the first.

    Memory: the vectors twice, one block of distances, and a few numbers a row.

    Args:
        vectors_RD: finite numbers [R, D].
        candidates: positions of the rows that may be chosen, rising.
        count: how many, 1 to the number of candidates.

    Returns:
        Positions of the chosen rows in their order, int64 [count]; of each row the nearest chosen one, itself where it is chosen, and the distance to it.
    """
    grid_RD, step = on_grid(vectors_RD)
    squares_R = np.square(grid_RD).sum(axis=1)
    # Distances in whole multiples of a power of two, so small that sums over all rows are exact: then gains have no rounding, and ties are ties.
    farthest = 2 * np.sqrt(squares_R.max()) + 1
    unit = 2.0 ** np.ceil(np.log2(farthest * len(grid_RD)) - 52)

    def distances(rows: np.ndarray) -> np.ndarray:
        squares_BR = grid_RD[rows] @ grid_RD.T
        squares_BR *= -2
        squares_BR += squares_R[rows, None]
        squares_BR += squares_R
        np.sqrt(squares_BR, out=squares_BR)
        squares_BR /= unit
        return np.rint(squares_BR, out=squares_BR)

    lot = max(1, _BLOCK // len(grid_RD))
    least_R, nearest_R = np.full(len(grid_RD), np.ceil(farthest / unit)), np.zeros(len(grid_RD), np.int64)
    # What a candidate would add is never more than what it would have added earlier: only those that may still be the best are asked again.
    gains_C, known_at_C = np.full(len(candidates), np.inf), np.full(len(candidates), -1)
    chosen = np.zeros(count, np.int64)
    for place in range(count):
        asked = _FIRST_LOT
        while known_at_C[best := int(gains_C.argmax())] < place:
            asked = min(2 * asked, lot, len(candidates))
            first = np.argpartition(-gains_C, asked - 1)[:asked]
            stale = np.union1d(first[known_at_C[first] < place], [best])
            gains_C[stale] = np.maximum(least_R - distances(candidates[stale]), 0).sum(axis=1)
            known_at_C[stale] = place
        chosen[place] = candidates[best]
        away_R = distances(chosen[place : place + 1])[0]
        nearer = away_R < least_R
        nearest_R[nearer], least_R[nearer] = chosen[place], away_R[nearer]
        gains_C[best], known_at_C[best] = -1, count  # never asked again
    nearest_R[chosen] = chosen  # a twin of an earlier one stands for itself
    return chosen, nearest_R, least_R * unit * step


def _said(ids: "pl.Series", nearest: int, distance: float) -> str:
    return f"nearest kept row {ids[nearest]} at distance {distance:.4g}"
