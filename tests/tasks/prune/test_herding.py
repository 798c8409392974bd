"""prune.herding against the greedy rule written out, and what the mean of what stays does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.prune.herding import herding
from tests.tasks.prune.choosing import choose, kept

POINTS = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=2, max_size=12)


def by_the_rule(points_ND: np.ndarray, count: int) -> set[str]:
    mean_D, chosen = points_ND.mean(axis=0), []
    for place in range(count):
        total_D = points_ND[chosen].sum(axis=0)
        off = [np.linalg.norm((place + 1) * mean_D - total_D - points_ND[row]) if row not in chosen else np.inf for row in range(len(points_ND))]
        chosen.append(int(np.argmin(np.round(off, 3))))
    return {f"sample{row:04}" for row in chosen}


@given(POINTS, st.data())
def test_agrees_with_the_rule_step_by_step(points, data):
    points_ND = np.array(points, np.float32)
    count = data.draw(st.integers(1, len(points)))
    assert kept(choose(herding, points_ND, keep_rows=count)) == by_the_rule(points_ND.astype(np.float64), count)


def test_the_mean_of_what_stays_is_nearer_to_that_of_all_than_a_random_choice_s():
    points_ND = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    chosen = choose(herding, points_ND, keep_rows=40)
    off = np.linalg.norm(points_ND[chosen["reason"].is_null().to_numpy()].mean(axis=0) - points_ND.mean(axis=0))
    random = [np.linalg.norm(np.random.default_rng(seed).choice(points_ND, 40, replace=False).mean(axis=0) - points_ND.mean(axis=0)) for seed in range(20)]
    assert off < min(random) / 4


def test_each_class_has_its_quota_and_its_own_mean():
    points_ND = np.concatenate([np.zeros((20, 2)), np.full((4, 2), 9.0)]).astype(np.float32)
    chosen = choose(herding, points_ND, [0] * 20 + [1] * 4, images_per_class=6)
    assert chosen.filter(chosen["reason"].is_null())["label"].to_list() == [0] * 6 + [1] * 4
    assert set(chosen["reason"].drop_nulls()) == {"not among the 6 of 20 whose mean is that of class 0"}


def test_rows_without_a_usable_vector_are_rejected_and_poison_nothing():
    points_ND = np.array([[0.0], [1.0], [np.nan], [np.inf], [2.0]], np.float32)
    chosen = choose(herding, points_ND, keep_rows=3)
    assert chosen["kind"].to_list() == [None, None, "rejected", "rejected", None]
