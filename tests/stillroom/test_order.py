"""Orders as pure functions: each row once, whatever is asked for at once; groups in equal parts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.datasets import EpochOrder
from stillroom.errors import InputError
from stillroom.order import BLOCK_ROWS, WINDOW_BLOCKS, GroupOrder, Order, permutation

WINDOW_ROWS = BLOCK_ROWS * WINDOW_BLOCKS
# Below, at and above a block and a window, and with several windows.
ROWS = st.sampled_from([1, 2, 103, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, WINDOW_ROWS, WINDOW_ROWS + 1, 3 * WINDOW_ROWS + 7])


@given(ROWS, st.integers(0, 2**40), st.integers(0, 5), st.sampled_from([True, "full", False]))
def test_an_epoch_has_each_row_once(rows, seed, epoch, shuffle):
    order = Order(rows, seed=seed, shuffle=shuffle).at(epoch, np.arange(rows))
    assert (np.sort(order) == np.arange(rows)).all()


@given(ROWS, st.integers(0, 9), st.sampled_from([True, "full", False]), st.data())
def test_what_stands_at_a_position_does_not_depend_on_what_else_is_asked_for(rows, seed, shuffle, data):
    whole = Order(rows, seed=seed, shuffle=shuffle).at(3, np.arange(rows))
    some = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=50)))
    assert (Order(rows, seed=seed, shuffle=shuffle).at(3, some) == whole[some]).all()


def test_the_full_shuffle_is_the_order_of_the_loader():
    places = list(EpochOrder(103, seed=5, shuffle=True, epoch=2))
    assert [place.row for place in places] == permutation(103, 5, 2).tolist() == Order(103, seed=5, shuffle="full").at(2, np.arange(103)).tolist()


def test_a_window_of_the_order_comes_from_a_few_blocks():
    order = Order(20 * WINDOW_ROWS, seed=0, shuffle=True).at(0, np.arange(20 * WINDOW_ROWS))
    for window in order.reshape(20, WINDOW_ROWS):
        assert len(np.unique(window // BLOCK_ROWS)) == WINDOW_BLOCKS
    assert np.abs(np.diff(order[:WINDOW_ROWS])).min() >= 1 and not (np.sort(order[:WINDOW_ROWS]) == order[:WINDOW_ROWS]).all()


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_seeds_and_epochs_differ_and_are_not_summed(shuffle):
    orders = {(seed, epoch): tuple(Order(300, seed=seed, shuffle=shuffle).at(epoch, np.arange(300))) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9


def test_an_unknown_word_is_told():
    with pytest.raises(InputError, match="shuffle='ful'; shuffle is True, False or 'full'"):
        Order(3, seed=0, shuffle="ful")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 5), st.integers(0, 9))
def test_groups_come_equally_often_and_none_twice_before_all_its_rows(sizes, per_group, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)[np.random.default_rng(0).permutation(sum(sizes))]
    order = GroupOrder(groups, per_group=per_group, seed=seed, shuffle=True)
    rows = order.at(1, np.arange(len(order)))
    assert len(set(Counter(groups[rows].tolist()).values())) == 1 and len(order) >= sum(sizes)
    for group, size in enumerate(sizes):
        shown = rows[groups[rows] == group]
        assert all(len(set(shown[start : start + size])) == len(shown[start : start + size]) for start in range(0, len(shown), size))


def test_batches_hold_groups_in_equal_parts():
    groups = np.array([row % 6 for row in range(60)])
    order = GroupOrder(groups, per_group=2, seed=0, shuffle=True)
    for size, turns in ((4, 2), (10, 5), (12, 6), (24, 6)):
        order.check(size)
        for start in range(0, 48, size):
            counts = Counter(groups[order.at(0, np.arange(start, start + size))].tolist())
            assert len(counts) == turns and len(set(counts.values())) == 1
    assert sorted(order.at(0, np.arange(60))) == list(range(60))  # equal groups: each row once


@pytest.mark.parametrize("size", [3, 14, 20])
def test_a_batch_that_can_not_hold_equal_parts_is_told(size):
    order = GroupOrder(np.array([row % 6 for row in range(60)]), per_group=2, seed=0, shuffle=True)
    with pytest.raises(InputError, match=f"a batch of {size} doesn't hold 6 groups.*take a multiple of 2 up to 12, or of 12"):
        order.check(size)
