"""prune.k_medoids: keep rows that stand for the others, by distance of a vector column."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.operators import Draw, select
from tasks.coverage import k_medoids as cluster
from tasks.prune._budget import Verdicts, by_bytes
from tasks.prune._vectors import VectorBudget, contests

if TYPE_CHECKING:
    import polars as pl


class KMedoidsParams(VectorBudget):
    """Parameters of `prune.k_medoids`."""

    exact_rows: int = Field(default=6000, ge=100, description="A class of more rows is treated in random parts, each of 4 · exact_rows² bytes.")


@select(
    version=1,
    requires=lambda params: params.columns(),
    vectors=lambda params: [params.vectors],
    adds={"cluster_size": pa.int32()},
    random=True,
)
@by_bytes
def k_medoids(frames: "dict[str, pl.DataFrame]", vectors: dict[str, np.ndarray], params: KMedoidsParams, draw: Draw) -> "pl.LazyFrame":
    """Keep the medoids of each class: rows with the least sum of distances from the others to them.

    Euclidean distance; FasterPAM from a k-means++ start, keyed by (seed, class), over rows in the order of
    `draw`, so that the choice depends neither on the table's order nor on the number of threads.
    `cluster_size` is the number of rows that have this one as their nearest, itself included. Rows
    with NaN or infinity in their vector are rejected.
    """
    import polars as pl

    samples = frames["samples"]
    medoid_N, distance_N = np.zeros(samples.height, np.int64), np.zeros(samples.height)
    verdicts = Verdicts(samples, params, medoid_N, distance_N)
    cluster_size: list[int | None] = [None] * samples.height
    ids = samples["sample_id"]
    for pool, by_id, vectors_RD, quota in contests(samples, vectors[params.vectors], params, verdicts):
        if not quota:
            verdicts.drop(by_id, f"no row of {pool.name} stays")
            continue
        drawn = draw.order(ids.gather(by_id))
        rows = by_id[drawn]
        found = cluster(vectors_RD[drawn], quota, draw.generator(pool.name), params.exact_rows)
        for medoid, size in zip(rows[found.medoids], np.bincount(found.nearest, minlength=quota), strict=True):
            cluster_size[medoid] = int(size)
        medoid_N[rows], distance_N[rows] = rows[found.medoids[found.nearest]], found.distance
        verdicts.drop(np.delete(rows, found.medoids), partial(_said, ids))
    return verdicts.frame(cluster_size=pl.Series(cluster_size, dtype=pl.Int32))


def _said(ids: "pl.Series", medoid: int, distance: float) -> str:
    return f"nearest medoid {ids[medoid]} at distance {distance:.4g}"
