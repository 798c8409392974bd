"""prune.ccs: keep rows from all over a score, but for its hard end."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from stillroom.operators import Draw, select
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._scores import ScoreBudget, contests, score_of

if TYPE_CHECKING:
    import polars as pl


class CcsParams(ScoreBudget):
    """Parameters of `prune.ccs`."""

    strata: int = Field(default=50, ge=1, description="Parts of equal width into which the range of the scores that are left is cut.")


@select(version=1, requires=lambda params: [params.score, *params.columns()], random=True)
@by_bytes
def ccs(frames: "dict[str, pl.DataFrame]", params: CcsParams, draw: Draw) -> "pl.LazyFrame":
    """Keep rows from all strata of a score, as evenly as the strata's sizes allow, but for the hardest.

    Coverage-centric coreset selection (Zheng et al., ICLR 2023), within each class: the hardest
    `cut_off` of the ranked rows leave; the range of the scores that are left is cut into `strata` of
    equal width; going from the smallest stratum to the largest, each gives its even share of what is
    still wanted, or all that it has; within a stratum rows are drawn by the hash of seed and id.
    Infinite scores are in the outermost stratum. Rows without a score are rejected.

    Raises:
        InputError: the score is no number, or no row has one.
    """
    samples = frames["samples"]
    score_N = score_of(samples, params.score)
    stratum_N = np.zeros(samples.height, np.int32)
    verdicts = Verdicts(samples, params, score_N, stratum_N)
    for pool, rows, last, quota in contests(samples, score_N, params, verdicts):
        verdicts.drop(rows[last:], partial(_cut, params.score, f"the hardest {len(rows) - last} of {len(rows)} in {pool.name} are cut off"))
        left = rows[:last]
        stratum_R = stratum_N[left] = strata(score_N[left], params.strata)
        sizes_S = np.bincount(stratum_R, minlength=params.strata)
        kept_S = even_shares(sizes_S, quota)
        drawn = left[draw.order(samples["sample_id"].gather(left))]
        # The place of each row among those of its stratum, in the order in which they are drawn.
        by_stratum = drawn[np.argsort(stratum_N[drawn], kind="stable")]
        place_R = np.arange(len(left)) - np.repeat(np.cumsum(sizes_S) - sizes_S, sizes_S)
        verdicts.drop(by_stratum[place_R >= kept_S[stratum_N[by_stratum]]], partial(_drawn, params.score, pool.name, sizes_S, kept_S))
    return verdicts.frame()


def strata(score_R: np.ndarray, count: int) -> np.ndarray:
    """The stratum of each score, int32 [R], 0 to count - 1, of equal width between the least and the largest finite one."""
    finite = score_R[np.isfinite(score_R)].astype(np.float64)
    if not len(finite) or finite.min() == finite.max():
        return np.where(score_R == np.inf, count - 1, 0).astype(np.int32)
    place_R = (score_R.astype(np.float64) - finite.min()) / (finite.max() - finite.min()) * count
    return np.clip(place_R, 0, count - 1).astype(np.int32)


def even_shares(sizes_S: np.ndarray, wanted: int) -> np.ndarray:
    """How many rows each stratum gives, int64 [S]: from the smallest upwards an even share of what is still wanted, or all it has."""
    kept_S = np.zeros(len(sizes_S), np.int64)
    filled = [int(stratum) for stratum in np.argsort(sizes_S, kind="stable") if sizes_S[stratum]]
    for done, stratum in enumerate(filled):
        kept_S[stratum] = min(int(sizes_S[stratum]), wanted // (len(filled) - done))
        wanted -= int(kept_S[stratum])
    return kept_S


def _cut(name: str, why: str, score: float, stratum: int) -> str:
    return f"{name} {score:.4g}: {why}"


def _drawn(name: str, pool: str, sizes_S: np.ndarray, kept_S: np.ndarray, score: float, stratum: int) -> str:
    return f"{name} {score:.4g}: stratum {stratum + 1} of {len(sizes_S)} in {pool}, of whose {sizes_S[stratum]} rows {kept_S[stratum]} are drawn"
