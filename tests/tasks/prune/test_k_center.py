"""prune.k_center against the best centers of small sets, and the greedy rule."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tasks.prune.k_center import k_center
from tests.tasks.prune.choosing import choose, kept


def radius(distances_NN: np.ndarray, centers: list[int]) -> float:
    return float(distances_NN[:, centers].min(axis=1).max())


@pytest.mark.parametrize("count", [1, 2, 4])
@given(points=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=4, max_size=10))
def test_no_row_is_farther_than_twice_the_best_radius(count, points):
    points_ND = np.array(points, np.float32)
    distances_NN = cdist(points_ND, points_ND)
    centers = [int(name.removeprefix("sample")) for name in kept(choose(k_center, points_ND, keep_rows=count))]
    best = min(radius(distances_NN, list(few)) for few in combinations(range(len(points)), count))
    assert radius(distances_NN, centers) <= 2 * best + 1e-5


def test_takes_the_middle_then_always_the_farthest_and_says_who_is_nearest():
    line_ND = np.array([[0.0], [5.0], [10.0], [6.0], [9.0]], np.float32)  # the mean is 6
    assert kept(choose(k_center, line_ND, keep_rows=1)) == {"sample0003"}
    assert kept(choose(k_center, line_ND, keep_rows=2)) == {"sample0003", "sample0000"}
    chosen = choose(k_center, line_ND, keep_rows=3)
    assert kept(chosen) == {"sample0003", "sample0000", "sample0002"}
    assert chosen["reason"].drop_nulls().to_list() == ["nearest center sample0003 at distance 1", "nearest center sample0002 at distance 1"]


def test_twins_fill_a_budget_that_exceeds_the_different_rows():
    assert len(kept(choose(k_center, np.zeros((5, 2), np.float32), keep_rows=4))) == 4


def test_rows_without_a_usable_vector_are_rejected_and_a_class_without_a_place_says_so():
    points_ND = np.array([[0.0], [np.nan], [2.0], [3.0]], np.float32)
    chosen = choose(k_center, points_ND, [0, 0, 0, 1], keep_rows=1)
    assert chosen["kind"].to_list() == [None, "rejected", "dropped", "dropped"]
    assert chosen["reason"][3] == "no row of class 1 stays"
