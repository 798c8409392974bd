"""Orders: which row comes at which place of an epoch, as pure functions of seed, epoch and number of rows.

Neither ranks nor workers nor the size of a batch are known here, so no order can depend on them. Each is
asked for the rows at some positions, and none of them needs the epoch in memory but `"full"`.
"""

from functools import lru_cache
from typing import Literal

import numpy as np

from stillroom.draws import Draw
from stillroom.errors import InputError

__all__ = ["BLOCK_ROWS", "WINDOW_BLOCKS", "GroupOrder", "Order", "Shuffle", "permutation", "shuffled_blocks"]

# P = positions asked for, N = rows, G = groups

Shuffle = Literal["full"] | bool
# Rows that stay together on the disk, and how many such blocks are shuffled into one another: 4,096 rows come
# from 16 places, and a row may come up to an epoch after the row that stands beside it.
BLOCK_ROWS, WINDOW_BLOCKS = 256, 16


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """An exact permutation of all rows, int64 [N]: each as likely as any other; N numbers are sorted."""
    return _sorted_words(rows, Draw(seed, "datasets.order"), "order", epoch)


def shuffled_blocks(rows: int, seed: int, epoch: int, positions_P: np.ndarray) -> np.ndarray:
    """The rows at these positions, int64 [P]: blocks of rows in any order, and rows in any order within a window of blocks.

    A snapshot's rows stand in the order of a hash already, so that a block is a sample drawn at random and a
    window is as good as one of a full shuffle. What is kept: of the rows of one block, all come within one window.
    """
    # The block that isn't full makes its window shorter: positions behind it count from where they would be otherwise.
    blocks = _block_order(rows, seed, epoch)
    window_rows, missing = BLOCK_ROWS * WINDOW_BLOCKS, -rows % BLOCK_ROWS
    short = int(np.flatnonzero(blocks == len(blocks) - 1)[0]) // WINDOW_BLOCKS
    at_P = positions_P + missing * (positions_P >= (short + 1) * window_rows - missing)
    window_P, out_P = at_P // window_rows, np.empty(len(positions_P), np.int64)
    for window in np.unique(window_P):
        here = window_P == window
        out_P[here] = _window(rows, seed, epoch, int(window))[at_P[here] - window * window_rows]
    return out_P


class Order:
    """The order of a split's epochs.

    Args:
        rows: how many there are.
        seed: of the shuffle.
        shuffle: True shuffles blocks of rows and rows within windows of blocks, "full" all rows; False leaves them as they stand.
    """

    def __init__(self, rows: int, *, seed: int, shuffle: Shuffle) -> None:
        if shuffle not in (True, False, "full"):
            raise InputError("order", f"shuffle={shuffle!r}", "shuffle is True, False or 'full'")
        self.rows, self.seed, self.shuffle = rows, seed, shuffle

    def __len__(self) -> int:
        return self.rows

    def at(self, epoch: int, positions_P: np.ndarray) -> np.ndarray:
        """The rows at these positions of an epoch, int64 [P]."""
        if self.shuffle == "full":
            return _full(self.rows, self.seed, epoch)[positions_P]
        return shuffled_blocks(self.rows, self.seed, epoch, positions_P) if self.shuffle else positions_P


class GroupOrder:
    """An order in which groups take turns, `per_group` rows each: any G neighbouring turns are of G different groups.

    All groups come equally often, so that those with fewer rows begin again while those with more are still
    at it; within a group no row comes twice before all have come. With groups of equal size, an epoch shows each row once.

    Args:
        groups_N: the group of each row, any whole numbers.
        per_group: rows of a turn.
        seed: of the shuffle; without one (`shuffle=False`), groups and rows come as they stand.
    """

    def __init__(self, groups_N: np.ndarray, *, per_group: int, seed: int, shuffle: Shuffle) -> None:
        self.per_group, self.seed, self.shuffle = per_group, seed, shuffle
        _, which_N, self.sizes_G = np.unique(groups_N, return_inverse=True, return_counts=True)
        self._rows = np.split(np.argsort(which_N, kind="stable"), np.cumsum(self.sizes_G)[:-1])
        self.groups = len(self.sizes_G)
        self._kept: tuple[int, dict[tuple[int, int], np.ndarray]] = (0, {})

    def __len__(self) -> int:
        turns = self.groups * self.per_group
        return -(-int(self.sizes_G.sum()) // turns) * turns

    def at(self, epoch: int, positions_P: np.ndarray) -> np.ndarray:
        """The rows at these positions of an epoch, int64 [P]."""
        turn_P, place_P = positions_P // self.per_group, positions_P % self.per_group
        draw = Draw(self.seed, "order.groups")
        turns_G = _sorted_words(self.groups, draw, "groups", epoch) if self.shuffle else np.arange(self.groups)
        group_P, nth_P = turns_G[turn_P % self.groups], turn_P // self.groups * self.per_group + place_P
        out_P = np.empty(len(positions_P), np.int64)
        for group in np.unique(group_P):
            here = np.flatnonzero(group_P == group)
            round_P, at_P = np.divmod(nth_P[here], self.sizes_G[group])
            for again in np.unique(round_P):
                rows = self._rows_of(int(group), int(again), epoch) if self.shuffle else self._rows[group]
                out_P[here[round_P == again]] = rows[at_P[round_P == again]]
        return out_P

    def check(self, batch_size: int) -> None:
        """Refuse a batch that can't hold groups in equal parts.

        Raises:
            InputError: with the way out.
        """
        turns = batch_size // self.per_group
        if batch_size % self.per_group or (turns > self.groups and turns % self.groups):
            parts = f"{self.groups} groups, {self.per_group} rows each"
            raise InputError("order", f"a batch of {batch_size} doesn't hold {parts}, in equal parts", _fitting(self.groups, self.per_group))

    def _rows_of(self, group: int, again: int, epoch: int) -> np.ndarray:
        """The rows of a group in their order, for the `again`-th time in this epoch; kept for one epoch, two rounds of each group at most."""
        if self._kept[0] != epoch:
            self._kept = (epoch, {})
        kept = self._kept[1]
        if (group, again) not in kept:
            kept.pop((group, again - 2), None)  # a window may hold the end of one round and the start of the next
            words = _sorted_words(len(self._rows[group]), Draw(self.seed, "order.groups"), f"{group} {again}", epoch)
            kept[group, again] = self._rows[group][words]
        return kept[group, again]


def _fitting(groups: int, per_group: int) -> str:
    return f"take a multiple of {per_group} up to {groups * per_group}, or of {groups * per_group}"


def _sorted_words(count: int, draw: Draw, what: str, epoch: int) -> np.ndarray:
    # Sorting raw Philox words: NumPy keeps the words, not what `permutation` makes of them, over its versions.
    return np.argsort(draw.generator(what, epoch).bit_generator.random_raw(count), kind="stable")


_full = lru_cache(maxsize=2)(permutation)


@lru_cache(maxsize=4)
def _block_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return _sorted_words(-(-rows // BLOCK_ROWS), Draw(seed, "order.blocks"), "blocks", epoch)


@lru_cache(maxsize=64)
def _window(rows: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The rows of one window in their order."""
    blocks = _block_order(rows, seed, epoch)[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]
    inside = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
    inside = inside[inside < rows]
    return inside[_sorted_words(len(inside), Draw(seed, "order.blocks"), f"window {window}", epoch)]
