"""prune.moderate against the ranking written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.prune.moderate import moderate
from tests.tasks.prune.choosing import choose, kept


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30, unique=True), st.data())
def test_keeps_those_whose_distance_is_nearest_to_the_median(points, data):
    points_ND = np.array(points, np.float32)
    count = data.draw(st.integers(1, len(points)))
    distance_N = np.linalg.norm(points_ND - points_ND.mean(axis=0), axis=1)
    off_N = np.abs(distance_N - np.median(distance_N))
    stay = choose(moderate, points_ND, keep_rows=count)["reason"].is_null().to_numpy()
    assert stay.sum() == count
    assert off_N[stay].max() <= np.sort(off_N)[count - 1] + 1e-4


def test_outliers_and_the_middle_leave_and_say_where_they_are():
    line_ND = np.array([[-10.0], [-1.0], [0.0], [1.0], [10.0]], np.float32)
    chosen = choose(moderate, line_ND, keep_rows=2)
    assert kept(chosen) == {"sample0001", "sample0003"}
    assert chosen["reason"][0] == "10 from the mean, where the median is 1: rank 4 of 5 in class 0 by closeness to it; the first 2 stay"


def test_rows_without_a_usable_vector_are_rejected_and_a_class_of_none_but_these_is_empty():
    points_ND = np.array([[0.0], [1.0], [np.nan]], np.float32)
    assert choose(moderate, points_ND, [0, 0, 1], images_per_class=1)["kind"].to_list() == [None, "dropped", "rejected"]
