"""filter.near_duplicates: drop or tag pictures that look like an earlier one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.operators import Params, select
from tasks.neighbours import HammingIndex

if TYPE_CHECKING:
    import polars as pl

# N rows, U different hashes

# Rows decided together: their pairs among each other are held, 2 million at most.
_TOGETHER = 2048
_PRECEDENCE = ("test", "validation")
_NONE = -1
_FAR = np.iinfo(np.int64).max


class NearDuplicatesParams(Params):
    """Parameters of `filter.near_duplicates`."""

    max_distance: int = Field(default=4, ge=0, le=16, description="Most bits of 64 in which the hashes of two near duplicates differ.")
    mode: Literal["drop", "tag"] = Field(default="drop", description="drop: duplicates leave; tag: all rows stay, with columns that name the twin.")


def _adds(params: NearDuplicatesParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType]:
    return {"duplicate_of": pa.string(), "duplicate_distance": pa.int32()} if params.mode == "tag" else {}


@select(
    version=1,
    requires=["phash"],
    prepare="score.perceptual_hash",
    adds=_adds,
)
def near_duplicates(frames: "dict[str, pl.DataFrame]", params: NearDuplicatesParams) -> "pl.DataFrame":
    """Keep one picture of each group of near duplicates, by perceptual hash.

    Rows are met in table order, where there is a `split` those of test first, then those of
    validation. A row within `max_distance` of one that stays is a duplicate of it, of the nearest such
    and of the first among equals; otherwise it stays, and a test row stays in any case. A row with
    the hash of one that left leaves as a duplicate of the same. So each
    duplicate looks like the row that its reason names, and no chain of likenesses joins two that
    differ. Rows without a hash (flat pictures) are compared with none, and stay.
    """
    import polars as pl

    samples = frames["samples"]
    precedence = _precedence(samples)
    hashed = np.flatnonzero(samples["phash"].is_not_null().to_numpy())
    rows = hashed[np.argsort(precedence[hashed], kind="stable")]
    twin, distance = _twins(samples["phash"].gather(rows).to_numpy(), precedence[rows] == 0, params.max_distance)
    ids = samples["sample_id"].to_list()
    duplicate_of: list[str | None] = [None] * samples.height
    distances: list[int | None] = [None] * samples.height
    for place in np.flatnonzero(twin != _NONE):
        duplicate_of[rows[place]], distances[rows[place]] = ids[rows[twin[place]]], int(distance[place])
    if params.mode == "tag":
        found = {"reason": [None] * samples.height, "duplicate_of": duplicate_of, "duplicate_distance": distances}
        return pl.DataFrame(found, schema={"reason": pl.String, "duplicate_of": pl.String, "duplicate_distance": pl.Int32})
    reasons = [None if of is None else f"near duplicate of {of}, {bits} of 64 bits differ" for of, bits in zip(duplicate_of, distances, strict=True)]
    return pl.DataFrame({"reason": reasons}, schema={"reason": pl.String})


def _precedence(samples: "pl.DataFrame") -> np.ndarray:
    """How early a row is met: test 0, validation 1, the rest 2."""
    import polars as pl

    if "split" not in samples.columns:
        return np.full(samples.height, len(_PRECEDENCE))
    places = {split: place for place, split in enumerate(_PRECEDENCE)}
    return samples["split"].replace_strict(places, default=len(_PRECEDENCE), return_dtype=pl.Int64).to_numpy()


def _twins(hashes_N: np.ndarray, protected_N: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """For rows in the order in which they are met: the row that each duplicates, or -1, and the distance."""
    hashes_U, first_U, of_N = np.unique(hashes_N, return_index=True, return_inverse=True)
    # Equal hashes are settled by their first row, so that a thousand copies make no half a million pairs.
    order = np.argsort(first_U)
    twin_U, distance_U = _greedy(HammingIndex(hashes_U[order], max_distance), protected_N[first_U][order])
    first, place_N = first_U[order], np.argsort(order)[of_N]
    twin_N = np.where(twin_U[place_N] == _NONE, first[place_N], first[twin_U[place_N]])
    stays_N = protected_N | (twin_N == np.arange(len(hashes_N)))
    return np.where(stays_N, _NONE, twin_N), np.where(stays_N, 0, distance_U[place_N])


def _greedy(index: HammingIndex, protected_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For hashes in order: the earlier one that stays and is nearest, or -1 for those that stay; and the distance."""
    count = len(protected_U)
    stays_U = np.zeros(count, bool)
    # The nearest and then the first: one number to minimise, distance before position.
    nearest_U = np.full(count, _FAR)
    for start in range(0, count, _TOGETHER):
        stop = min(start + _TOGETHER, count)
        among = []
        for pairs in index.pairs(start, stop):
            earlier = (pairs.first < start) & stays_U[pairs.first]
            np.minimum.at(nearest_U, pairs.second[earlier], pairs.distance[earlier] * count + pairs.first[earlier])
            among.append(np.stack(pairs)[:, pairs.first >= start])
        firsts, seconds, distances = np.concatenate(among, axis=1)
        firsts, seconds, distances = (part[np.argsort(seconds, kind="stable")] for part in (firsts, seconds, distances))
        edges = np.searchsorted(seconds, np.arange(start, stop + 1))
        for place, begin, end in zip(range(start, stop), edges[:-1], edges[1:], strict=True):
            alone = nearest_U[place] == _FAR and not stays_U[firsts[begin:end]].any()
            stays_U[place] = protected_U[place] or alone
        near = stays_U[firsts]
        np.minimum.at(nearest_U, seconds[near], distances[near] * count + firsts[near])
    return np.where(stays_U, _NONE, nearest_U % count), np.where(stays_U, 0, nearest_U // count)
