"""Rows that stand for the others: herding, k-medoids, and the grid on which their sums are exact.

FasterPAM (Schubert and Rousseeuw, Information Systems 2021: eager swaps on nearest and second
nearest medoids) from a k-means++ start, and for more rows than a distance matrix should hold, the
same on random parts, joined by alternating passes over all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Clustering", "grid_step", "herded", "k_medoids", "on_grid"]

# N rows, D numbers a row, K medoids; M some of the rows, B a block of them

# Entries of a block of distances: 32 MiB in float64.
_BLOCK = 1 << 22
# A part of a large class gets at least this many medoids, or a part's medoids would be mere means.
_PART_MEDOIDS = 20
_JOINING_PASSES = 4
# Members nearest the mean that may become a large cluster's medoid.
_CENTRAL = 256
# A swap has to gain this share of the total, or rounding could swap for ever.
_LEAST_GAIN = 1e-6


def on_grid(vectors_ND: np.ndarray, spare_bits: int = 0) -> tuple[np.ndarray, float]:
    """Vectors in whole multiples of a power of two, float64 [N, D], and that power.

    BLAS adds in an order that depends on threads and machine. Of whole numbers below 2^53 every
    order gives the same sum: each is kept to so many bits that D squares of differences fit,
    and `spare_bits` fewer where more than differences is summed up.
    """
    step = grid_step(float(np.abs(vectors_ND).max()), vectors_ND.shape[1], spare_bits)
    grid_ND = vectors_ND.astype(np.float64)
    grid_ND /= step
    return np.rint(grid_ND, out=grid_ND), step


def grid_step(largest: float, size: int, spare_bits: int = 0) -> float:
    """The power of two whose multiples `on_grid` takes, for vectors of `size` numbers up to `largest`."""
    bits = (53 - 2 - int(np.ceil(np.log2(size)))) // 2 - spare_bits
    return 2.0 ** (int(np.frexp(largest)[1]) - bits)


def herded(vectors_RD: np.ndarray, count: int) -> np.ndarray:
    """Choose rows so that the mean of the chosen stays near the mean of all (Welling, ICML 2009); ties to the first.

    Args:
        vectors_RD: finite numbers [R, D].
        count: how many, 1 to R.

    Returns:
        Positions of the chosen rows, int64 [count], in the order in which they are chosen: a smaller count gives the first of them.
    """
    # Everything is multiplied by the number of rows, so that the mean is whole as well and ties are ties;
    # what is aimed at may lie outside of where the rows are.
    grid_RD, _ = on_grid(vectors_RD, spare_bits=int(np.ceil((np.log2(len(vectors_RD)) + 4) / 2)))
    chosen, squares_R = np.zeros(count, np.int64), len(grid_RD) * np.square(grid_RD).sum(axis=1)
    total_D, sum_D = grid_RD.sum(axis=0), np.zeros(grid_RD.shape[1])
    for place in range(count):
        aim_D = (place + 1) * total_D - len(grid_RD) * sum_D
        chosen[place] = np.argmin(squares_R - 2 * (grid_RD @ aim_D))
        sum_D += grid_RD[chosen[place]]
        squares_R[chosen[place]] = np.inf
    return chosen


@dataclass(frozen=True)
class Clustering:
    """What `k_medoids` found: `medoids` int64 [K], sorted; `nearest` int64 [N], positions in
    `medoids`, each medoid being its own; `distance` float64 [N] to it.
    """

    medoids: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray


def k_medoids(vectors_ND: np.ndarray, count: int, rng: np.random.Generator, exact_rows: int) -> Clustering:
    """Choose `count` of N rows so that the sum of Euclidean distances to the nearest chosen one is small.

    Up to `exact_rows` rows: a local optimum, which no single swap makes better. Above it: rows are
    cut by their position into parts of at most `exact_rows`, as many as leave each part 20 medoids
    or more; each part gets its share of the medoids; then alternating passes over all rows give each
    row to its nearest medoid and each cluster to the row in its middle.

    The result depends on the order of the rows (give them in a random one) and on `rng`, not on the
    number of threads: vectors are rounded to a grid on which float64 products and sums are exact.

    Args:
        vectors_ND: finite numbers [N, D].
        count: K, 1 to N.
        rng: for the start.
        exact_rows: the most rows of one distance matrix, which takes 4 · exact_rows² bytes; 100 or more.
    """
    grid_ND, step = on_grid(vectors_ND)
    if count == len(grid_ND):
        medoids_K = np.arange(count)
    elif len(grid_ND) <= exact_rows:
        medoids_K = _local_optimum(grid_ND, count, rng)
    else:
        medoids_K = _joined(grid_ND, _of_parts(grid_ND, count, rng, exact_rows))
    medoids_K = np.sort(medoids_K)
    nearest_N, distance_N = _assign(grid_ND, medoids_K)
    return Clustering(medoids_K, nearest_N, distance_N * step)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows so that a block of `width` numbers a row stays small."""
    size = max(1, _BLOCK // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _distances(left_ND: np.ndarray, right_MD: np.ndarray) -> np.ndarray:
    """Euclidean distances, float64 [N, M], of vectors on the grid."""
    squares = left_ND @ right_MD.T
    squares *= -2
    squares += np.square(left_ND).sum(axis=1)[:, None]
    squares += np.square(right_MD).sum(axis=1)
    return np.sqrt(squares, out=squares)


def _assign(grid_ND: np.ndarray, medoids_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest medoid of each row and the distance to it, in blocks; ties to the first, a medoid to itself."""
    nearest_N, distance_N = np.empty(len(grid_ND), np.int64), np.empty(len(grid_ND))
    for block in _blocks(len(grid_ND), max(grid_ND.shape[1], len(medoids_K))):
        distance_BK = _distances(grid_ND[block], grid_ND[medoids_K])
        nearest_N[block], distance_N[block] = distance_BK.argmin(axis=1), distance_BK.min(axis=1)
    # A twin of an earlier medoid would otherwise be given to that one, and its own cluster be empty.
    nearest_N[medoids_K] = np.arange(len(medoids_K))
    return nearest_N, distance_N


def _local_optimum(grid_ND: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """FasterPAM on one distance matrix."""
    matrix_NN = np.empty((len(grid_ND), len(grid_ND)), np.float32)
    for block in _blocks(len(grid_ND), max(grid_ND.shape)):
        matrix_NN[block] = _distances(grid_ND[block], grid_ND)
    if count == 1:
        return matrix_NN.sum(axis=1, dtype=np.float64).argmin(keepdims=True)
    return _Swaps(matrix_NN, _start(matrix_NN, count, rng)).settle()


def _start(matrix_NN: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The start of k-means++ for a sum of distances: each next one with a chance as its distance to the chosen."""
    chosen = [int(rng.integers(len(matrix_NN)))]
    distance_N = matrix_NN[chosen[0]].astype(np.float64)
    for uniform in rng.random(count - 1):
        reach_N = np.cumsum(distance_N)
        if reach_N[-1] > 0:
            # Just below the end at most: the product may round up to it, and no row lies there.
            chosen.append(int(np.searchsorted(reach_N, min(uniform * reach_N[-1], np.nextafter(reach_N[-1], 0)), side="right")))
        else:  # only twins of chosen rows are left
            chosen.append(int(np.setdiff1d(np.arange(len(matrix_NN)), chosen)[0]))
        np.minimum(distance_N, matrix_NN[chosen[-1]], out=distance_N)
    return np.array(chosen)


class _Swaps:
    """The medoids under way, and each row's nearest and second nearest."""

    def __init__(self, matrix_NN: np.ndarray, medoids_K: np.ndarray) -> None:
        self.matrix_NN, self.medoids_K = matrix_NN, medoids_K
        rows = len(matrix_NN)
        self.first_N, self.second_N = np.empty(rows, np.int64), np.empty(rows, np.int64)
        self.to_first_N, self.to_second_N = np.empty(rows, np.float32), np.empty(rows, np.float32)
        self._look_up(np.arange(rows))

    def settle(self) -> np.ndarray:
        """Swap in every row that makes the sum smaller, until a whole round finds none."""
        rows = len(self.matrix_NN)
        row, since_swap = 0, 0
        is_medoid = np.zeros(rows, bool)
        is_medoid[self.medoids_K] = True
        while since_swap < rows:
            if not is_medoid[row] and (slot := self._better(row)) is not None:
                is_medoid[self.medoids_K[slot]], is_medoid[row] = False, True
                self._swap(slot, row)
                since_swap = 0
            row, since_swap = (row + 1) % rows, since_swap + 1
        return self.medoids_K

    def _better(self, row: int) -> int | None:
        """The medoid whose place `row` should take, if the sum gets smaller by it."""
        distance_N = self.matrix_NN[row]
        with_both_N = np.minimum(distance_N, self.to_first_N)
        without_first_N = np.minimum(distance_N, self.to_second_N)
        loss_K = np.bincount(self.first_N, without_first_N - with_both_N, minlength=len(self.medoids_K))
        slot = int(loss_K.argmin())
        total = self.to_first_N.sum(dtype=np.float64)
        change = loss_K[slot] + with_both_N.sum(dtype=np.float64) - total
        return slot if change < -_LEAST_GAIN * total else None

    def _swap(self, slot: int, row: int) -> None:
        lost_N = (self.first_N == slot) | (self.second_N == slot)
        self.medoids_K[slot] = row
        distance_N = self.matrix_NN[row]
        nearest_N = ~lost_N & (distance_N < self.to_first_N)
        self.second_N[nearest_N], self.to_second_N[nearest_N] = self.first_N[nearest_N], self.to_first_N[nearest_N]
        self.first_N[nearest_N], self.to_first_N[nearest_N] = slot, distance_N[nearest_N]
        next_N = ~lost_N & ~nearest_N & (distance_N < self.to_second_N)
        self.second_N[next_N], self.to_second_N[next_N] = slot, distance_N[next_N]
        self._look_up(np.flatnonzero(lost_N))

    def _look_up(self, rows_M: np.ndarray) -> None:
        """Find nearest and second nearest anew for these rows."""
        for block in _blocks(len(rows_M), len(self.medoids_K)):
            rows = rows_M[block]
            distance_KM = self.matrix_NN[np.ix_(self.medoids_K, rows)]
            across = np.arange(len(rows))
            self.first_N[rows] = first = distance_KM.argmin(axis=0)
            self.to_first_N[rows] = distance_KM[first, across]
            distance_KM[first, across] = np.inf
            self.second_N[rows] = second = distance_KM.argmin(axis=0)
            self.to_second_N[rows] = distance_KM[second, across]


def _of_parts(grid_ND: np.ndarray, count: int, rng: np.random.Generator, exact_rows: int) -> np.ndarray:
    """Medoids of random parts of the rows: of all rows where `count` allows, else of as many as the parts hold."""
    parts = min(-(-len(grid_ND) // exact_rows), max(1, count // _PART_MEDOIDS))
    rows = min(len(grid_ND), parts * exact_rows)
    edges = np.arange(parts + 1) * rows // parts
    # Cut at the same places, so that no share exceeds its part: count <= rows, as 20 medoids a part are far fewer than exact_rows.
    shares = np.diff(edges * count // rows)
    return np.concatenate([start + _local_optimum(grid_ND[start:stop], share, rng) for start, stop, share in zip(edges[:-1], edges[1:], shares, strict=True)])


def _joined(grid_ND: np.ndarray, medoids_K: np.ndarray) -> np.ndarray:
    """Alternating passes: rows to their nearest medoid, clusters to the row in their middle."""
    for _ in range(_JOINING_PASSES):
        nearest_N, _distance = _assign(grid_ND, medoids_K)
        members = np.split(np.argsort(nearest_N, kind="stable"), np.cumsum(np.bincount(nearest_N, minlength=len(medoids_K)))[:-1])
        moved_K = np.array([_middle(grid_ND, rows, medoid) for rows, medoid in zip(members, medoids_K, strict=True)])
        if (moved_K == medoids_K).all():
            break
        medoids_K = moved_K
    return medoids_K


def _middle(grid_ND: np.ndarray, rows_M: np.ndarray, medoid: int) -> int:
    """The member with the least sum of distances to its cluster, among the medoid and those nearest the mean."""
    members_MD = grid_ND[rows_M]
    from_mean_M = np.square(members_MD - members_MD.mean(axis=0)).sum(axis=1)
    candidates = np.union1d(rows_M[np.argsort(from_mean_M, kind="stable")[:_CENTRAL]], [medoid])
    sums = np.zeros(len(candidates))
    for block in _blocks(len(rows_M), max(grid_ND.shape[1], len(candidates))):
        sums += _distances(members_MD[block], grid_ND[candidates]).sum(axis=0)
    best = int(sums.argmin())
    return medoid if sums[best] == sums[candidates == medoid][0] else int(candidates[best])
