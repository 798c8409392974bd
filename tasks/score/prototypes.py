"""score.prototypes: how far each row is from the centre of the cluster that it belongs to."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.fields import score_field
from stillroom.operators import Params, Table, Unit, Work, score
from tasks.coverage import grid_step
from tasks.hardness import HARD_END
from tasks.nets.samples import load_labels

# N rows, D numbers a row, K clusters; B a block of rows

NAME = "prototype_distance"
# Numbers of a block: 16 MiB in float64.
BLOCK = 1 << 21
# Rows, by cluster and at least, among which the start is drawn: k-means++ passes over them once a cluster.
START_ROWS, LEAST_START_ROWS = 30, 3000


class PrototypesParams(Params):
    """Parameters of `score.prototypes`."""

    vectors: str = Field(default="embedding", description="Vector column that is clustered.")
    clusters: int | None = Field(default=None, ge=1, description="Clusters; left out, as many as there are classes. Never more than rows.")
    iterations: int = Field(default=100, ge=1, description="The most rounds of k-means; it ends before, once no centre moves.")
    normalise: bool = Field(default=False, description="Scale each vector to length 1 first, so that distance grows with the angle.")

    def columns(self) -> list[str]:
        """The columns that are needed."""
        return [self.vectors] if self.clusters else [self.vectors, "label"]


def _adds(params: PrototypesParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    return {NAME: score_field(NAME, hard=HARD_END[NAME], low=0, high=2 if params.normalise else None, **params.model_dump())}


def _units() -> list[Unit]:
    return [Unit("all")]


@score(version=1, requires=lambda params: params.columns(), adds=_adds, units=_units, random=True)
def prototypes(unit: Unit, inputs: Mapping[str, Table], params: PrototypesParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Score each row by its distance to the nearest centre of k-means: near is easy, far is hard.

    The prototypes of Sorscher et al. (arXiv 2206.14486): k-means over vectors of a self-supervised
    net, or any others. `prototype_distance`, from 0 (to 2 where vectors have length 1), high is hard:
    Euclidean distance to the mean of the row's cluster. Labels play no part but for the default of `clusters`.

    Lloyd's rounds from a k-means++ start, which is drawn by sample id among 30 rows a cluster. Vectors
    are rounded to a grid, to about six digits of the largest number, on which all sums are exact: the
    scores depend neither on the order of rows nor on threads. Memory is a few blocks of 16 MiB and the centres,
    beside the memory-mapped vectors.

    Args:
        unit: all rows.

    Returns:
        `sample_id` and `prototype_distance`, float32; null where the vector holds NaN or infinity.

    Raises:
        InputError: no row has a vector of finite numbers; `clusters` is left out and a row has no label.
    """
    table = inputs["samples"]
    grid = _Grid(table.vectors(params.vectors), params.normalise, params.vectors)
    ids = table.frame(["sample_id"])["sample_id"]
    centres_KD = _start(grid, work.draw.order(ids), params.clusters or len(load_labels(table)[1]), work)
    for done in range(1, params.iterations + 1):
        before_KD, centres_KD = centres_KD, _moved(grid, centres_KD)
        work.progress(done, params.iterations)
        if np.array_equal(before_KD, centres_KD):
            break
    work.metrics["k-means"] = {"clusters": len(centres_KD), "rounds": done}
    distance_N = np.full(len(ids), np.nan)
    for rows_B, block_BD in grid.blocks(len(centres_KD)):
        distance_N[rows_B] = np.sqrt(_squares(block_BD, centres_KD).min(axis=1)) * grid.step
    yield pa.RecordBatch.from_pydict({"sample_id": ids.to_arrow().cast(pa.string()), NAME: pa.array(distance_N, pa.float32(), from_pandas=True)})


class _Grid:
    """Vectors as whole multiples of `step`, a block at a time, without the rows that aren't finite."""

    def __init__(self, vectors_ND: np.ndarray, normalise: bool, name: str) -> None:
        self.vectors_ND, self.normalise = vectors_ND, normalise
        self.finite_N, largest = np.zeros(len(vectors_ND), bool), 0.0
        for rows_B, block_BD in self._finite(1):
            self.finite_N[rows_B], largest = True, max(largest, float(np.abs(block_BD).max(initial=0)))
        if not self.finite_N.any():
            raise InputError(f"column '{name}'", f"none of {len(vectors_ND)} rows has a vector of finite numbers")
        self.step = grid_step(largest or 1.0, vectors_ND.shape[1])

    def blocks(self, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and vectors on the grid, float64 [B, D], in blocks that suit a matrix of `width` columns beside them."""
        return ((rows_B, np.rint(block_BD / self.step)) for rows_B, block_BD in self._finite(width))

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these rows, which are finite, on the grid."""
        return np.rint(self._scaled(rows)[1] / self.step)

    def _finite(self, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        size = max(1, BLOCK // max(width, self.vectors_ND.shape[1]))
        return (self._scaled(np.arange(start, min(start + size, len(self.vectors_ND)))) for start in range(0, len(self.vectors_ND), size))

    def _scaled(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of these rows that are finite, and their vectors, of length 1 where asked; one of zeros stays so."""
        block_BD = self.vectors_ND[rows].astype(np.float64)
        finite_B = np.isfinite(block_BD).all(axis=1)
        block_BD = block_BD[finite_B]
        if self.normalise:
            length_B = np.sqrt(np.square(block_BD).sum(axis=1, keepdims=True))
            block_BD /= np.where(length_B == 0, 1, length_B)
        return rows[finite_B], block_BD


def _start(grid: _Grid, order_N: np.ndarray, clusters: int, work: Work) -> np.ndarray:
    """The first centres, [K, D] on the grid, by k-means++ among the first of the rows in a drawn order."""
    from sklearn.cluster import kmeans_plusplus

    drawn_SD = grid.at(order_N[grid.finite_N[order_N]][: max(LEAST_START_ROWS, START_ROWS * clusters)])
    centres_KD, _ = kmeans_plusplus(drawn_SD, min(clusters, len(drawn_SD)), random_state=work.draw.integer("start") % 2**32)
    return centres_KD


def _moved(grid: _Grid, centres_KD: np.ndarray) -> np.ndarray:
    """Each centre at the mean of the rows that are nearest to it, ties to the first; one without rows stays where it is."""
    sums_KD, counts_K = np.zeros_like(centres_KD), np.zeros(len(centres_KD))
    for _, block_BD in grid.blocks(len(centres_KD)):
        nearest_B = _squares(block_BD, centres_KD).argmin(axis=1)
        members_BK = np.zeros((len(block_BD), len(centres_KD)))
        members_BK[np.arange(len(block_BD)), nearest_B] = 1
        sums_KD += members_BK.T @ block_BD
        counts_K += members_BK.sum(axis=0)
    # The mean is rounded as well, so that the next round's sums are exact.
    return np.where(counts_K[:, None] > 0, np.rint(sums_KD / np.maximum(counts_K, 1)[:, None]), centres_KD)


def _squares(block_BD: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Squared distances, [B, K]."""
    squares_BK = block_BD @ centres_KD.T
    squares_BK *= -2
    squares_BK += np.square(block_BD).sum(axis=1)[:, None]
    squares_BK += np.square(centres_KD).sum(axis=1)
    return squares_BK
