"""Shared numerics of neighbour search: pairs of 64-bit hashes within a Hamming distance, and the nearest of some vectors."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tasks.coverage import on_grid

__all__ = ["HammingIndex", "Pairs", "nearest"]

# N hashes or vectors, D numbers a vector, K neighbours, B vectors of a block

_BITS = 64
# Candidates looked at in one go: 8 bytes each in half a dozen arrays.
_CANDIDATES = 1 << 20
# Entries of a block of distances: 32 MiB in float64.
_BLOCK = 1 << 22


class Pairs(NamedTuple):
    """Pairs of positions with their Hamming distance; int64 each, `first` < `second`."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


class HammingIndex:
    """Finds all pairs of hashes within a Hamming distance, exactly, by multi-index hashing.

    The 64 bits are cut in `max_distance` + 1 parts. Two hashes that differ in at most `max_distance`
    bits agree in one part at least (pigeonhole), so only hashes that share a part are compared
    (Norouzi, Punjani and Fleet, CVPR 2012). Parts take every n-th bit, since neighbouring bits of a
    perceptual hash go together. Memory is O(N · parts); time grows with the square of N once
    parts get so short that most hashes share one.

    Args:
        hashes_N: uint64 [N].
        max_distance: 0 to 63 bits.
    """

    def __init__(self, hashes_N: np.ndarray, max_distance: int) -> None:
        parts = max_distance + 1
        self.hashes_N, self.max_distance = hashes_N, max_distance
        self.masks = [np.uint64(sum(1 << bit for bit in range(part, _BITS, parts))) for part in range(parts)]
        # By part: positions sorted by its bits, in rising order where they agree; each position's
        # place among them, and where those that agree with it begin.
        self.orders, self.places, self.begins = [], [], []
        for mask in self.masks:
            keys_N = hashes_N & mask
            order = np.argsort(keys_N, kind="stable")
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            self.orders.append(order)
            self.places.append(place)
            self.begins.append(np.searchsorted(keys_N[order], keys_N))

    def pairs(self, start: int, stop: int) -> Iterator[Pairs]:
        """All pairs whose second position is in [start, stop), each once, in lots of bounded size."""
        for part in range(len(self.masks)):
            begin, end = self.begins[part][start:stop], self.places[part][start:stop]
            seconds = np.arange(start, stop)
            lots = np.cumsum(end - begin) // _CANDIDATES
            for lot in np.split(np.arange(stop - start), np.flatnonzero(np.diff(lots)) + 1):
                yield self._within(part, seconds[lot], begin[lot], end[lot])

    def _within(self, part: int, second: np.ndarray, begin: np.ndarray, end: np.ndarray) -> Pairs:
        """Of the positions that stand before `second` among those that share its part: the near ones."""
        counts = end - begin
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = self.orders[part][np.repeat(begin, counts) + offsets]
        second = np.repeat(second, counts)
        differing = self.hashes_N[first] ^ self.hashes_N[second]
        distance = np.bitwise_count(differing).astype(np.int64)
        near = distance <= self.max_distance
        for mask in self.masks[:part]:  # found there already
            near &= (differing & mask) != 0
        return Pairs(first[near], second[near], distance[near])


def nearest(vectors_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other vectors of each, exactly, by Euclidean distance; of equal ones the first.

    All pairs are compared, in blocks: time grows with N² · D, memory is that of the vectors in float64
    and of N · K neighbours. Vectors are rounded to a grid on which sums are exact (`on_grid`), so that
    the number of threads has no say.

    Args:
        vectors_ND: finite numbers [N, D].
        count: K, 0 to N - 1.

    Returns:
        Positions int64 [N, K], from near to far, and squared distances float64 [N, K].
    """
    grid_ND, step = on_grid(vectors_ND)
    squares_N = np.square(grid_ND).sum(axis=1)
    others_NK, away_NK = np.zeros((len(grid_ND), count), np.int64), np.zeros((len(grid_ND), count))
    rows = max(1, _BLOCK // len(grid_ND)) if count else len(grid_ND)
    for start in range(0, len(grid_ND) if count else 0, rows):
        block = slice(start, min(start + rows, len(grid_ND)))
        away_BN = grid_ND[block] @ grid_ND.T
        away_BN *= -2
        away_BN += squares_N[block, None]
        away_BN += squares_N
        away_BN[np.arange(len(away_BN)), np.arange(block.start, block.stop)] = np.inf
        others_NK[block] = _least(away_BN, count)
        away_NK[block] = np.take_along_axis(away_BN, others_NK[block], axis=1)
    return others_NK, away_NK * step**2


def _least(away_BN: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` least of each row, from near to far, of equal ones the first; int64 [B, count]."""
    found_BK = np.sort(np.argpartition(away_BN, count - 1, axis=1)[:, :count], axis=1)
    last_B = np.take_along_axis(away_BN, found_BK, axis=1).max(axis=1)
    # Of several at the last distance, a partition takes any.
    for row in np.flatnonzero((away_BN <= last_B[:, None]).sum(axis=1) > count):
        nearer = np.flatnonzero(away_BN[row] < last_B[row])
        equal = np.flatnonzero(away_BN[row] == last_B[row])
        found_BK[row] = np.sort(np.concatenate([nearer, equal[: count - len(nearer)]]))
    order_BK = np.argsort(np.take_along_axis(away_BN, found_BK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found_BK, order_BK, axis=1)
