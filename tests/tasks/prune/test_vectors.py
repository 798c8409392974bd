"""What all rankings by vectors keep to: nested budgets, and no say for the order of rows or the number of threads."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tasks.prune.herding import herding
from tasks.prune.k_center import k_center
from tasks.prune.moderate import moderate
from tests.tasks.prune.choosing import choose, kept

RANKINGS = pytest.mark.parametrize("operator", [herding, k_center, moderate])


@RANKINGS
def test_a_larger_budget_keeps_what_a_smaller_one_keeps_and_no_order_of_rows_counts(operator):
    points_ND = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    few, more = (kept(choose(operator, points_ND, keep_rows=rows)) for rows in (10, 25))
    assert few < more
    order = np.random.default_rng(2).permutation(60)
    assert kept(choose(operator, points_ND[order], ids=[f"sample{row:04}" for row in order], keep_rows=10)) == few


@RANKINGS
def test_threads_have_no_say(operator):
    points_ND = np.random.default_rng(3).normal(size=(3000, 64)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(kept(choose(operator, points_ND, keep_rows=200)))
    assert found[0] == found[1]


@RANKINGS
def test_lengths_count_unless_vectors_are_normalised(operator):
    rng = np.random.default_rng(4)
    points_ND = rng.normal(size=(40, 3)).astype(np.float32)
    longer_ND = points_ND * np.float32(2.0) ** rng.integers(-3, 4, (40, 1))
    assert kept(choose(operator, longer_ND, normalise=True, keep_rows=8)) == kept(choose(operator, points_ND, normalise=True, keep_rows=8))
    assert kept(choose(operator, longer_ND, keep_rows=8)) != kept(choose(operator, points_ND, keep_rows=8))
