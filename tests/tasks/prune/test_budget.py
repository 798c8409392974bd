"""Budgets: exact sums, fair shares, and what a recipe may not ask for."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.prune._budget import Budget, pools, quotas, rounded

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def shares(sizes: list[int], available: list[int] | None = None, **budget: object) -> list[int]:
    return quotas(Budget(**budget), sum(sizes), sizes, available or sizes)


def test_every_class_gets_the_same_and_the_larger_ones_what_does_not_divide():
    assert shares([50, 60, 55], keep_rows=32) == [10, 11, 11]


def test_equal_classes_settle_a_remainder_by_the_lower_label():
    assert shares([50, 50, 50], keep_rows=31) == [11, 10, 10]


def test_what_a_small_class_lacks_goes_to_the_others():
    assert shares([4, 50, 50], keep_rows=30) == [4, 13, 13]


def test_images_per_class_gives_nobody_the_rest():
    assert shares([4, 50, 50], images_per_class=10) == [4, 10, 10]


def test_proportional_shares_go_by_largest_remainder():
    # 10 · 5/18 = 2.78, 10 · 6/18 = 3.33, 10 · 7/18 = 3.89
    assert shares([5, 6, 7], keep_rows=10, balance="proportional") == [3, 3, 4]


def test_proportional_counts_all_rows_of_a_class_but_takes_only_those_on_offer():
    assert shares([40, 40, 20], [40, 1, 20], keep_rows=10, balance="proportional") == [6, 1, 3]


@pytest.mark.parametrize(("share", "rows", "kept"), [(0.1, 1078, 108), (0.1, 1075, 108), (0.29, 50, 15), (0.3, 1, 0), (1.0, 7, 7)])
def test_a_share_is_rounded_half_up_by_its_decimal_digits(share, rows, kept):
    assert rounded(share, rows) == kept


def test_the_smallest_share_keeps_one_row():
    assert shares([3, 3], keep="1%") == [1, 0]


@given(SIZES, st.integers(1, 500), st.sampled_from(["label", "proportional"]), st.data())
def test_the_sum_is_exact_and_no_class_gives_more_than_it_has(sizes, wanted, balance, data):
    available = [data.draw(st.integers(0, size)) for size in sizes]
    kept = shares(sizes, available, keep_rows=wanted, balance=balance)
    assert sum(kept) == min(wanted, sum(available))
    assert all(quota <= rows for quota, rows in zip(kept, available, strict=True))


@given(SIZES, st.integers(1, 500))
def test_balanced_classes_differ_by_one_unless_they_are_used_up(sizes, wanted):
    kept = shares(sizes, keep_rows=wanted)
    left_over = [quota for quota, size in zip(kept, sizes, strict=True) if quota < size]
    assert max(left_over, default=0) - min(left_over, default=0) <= 1
    assert all(quota <= min(left_over) + 1 for quota, size in zip(kept, sizes, strict=True) if quota == size and left_over)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({}, "exactly one of keep, keep_rows, images_per_class"),
        ({"keep": 0.1, "keep_rows": 5}, "exactly one of"),
        ({"keep": 0}, "leaves no row"),
        ({"images_per_class": 5, "balance": "none"}, "balance: none contradicts it"),
        ({"keep_rows": 0}, "greater than or equal to 1"),
        ({"keep": "110%"}, "keep"),
        ({"kept": 0.1}, "kept"),
    ],
)
def test_refuses(budget, says):
    with pytest.raises(ValidationError, match=says):
        Budget(**budget)


def test_pools_are_in_the_order_of_labels_and_leave_out_rows_without_one():
    found = pools(pl.DataFrame({"label": [10, 2, None, 10, 2]}), Budget(keep=0.5))
    assert [(pool.name, pool.rows.tolist()) for pool in found] == [("class 2", [1, 4]), ("class 10", [0, 3])]
