"""prune.d2 against a direct calculation on a dense matrix; and what its neighbours do to a row."""

import numpy as np
import pytest

from tasks.prune.by_score import by_score
from tasks.prune.d2 import d2
from tests.tasks.prune.choosing import choose, kept


def directly(points_ND: np.ndarray, score_N: np.ndarray, wanted: int, neighbours: int, gamma: float) -> set[str]:
    """The paper's steps one by one: distances of all pairs, messages forward, the largest, messages back."""
    away_NN = ((points_ND[:, None] - points_ND[None]) ** 2).sum(axis=2, dtype=np.float64)
    np.fill_diagonal(away_NN, np.inf)
    near_NK = np.argsort(away_NN, axis=1, kind="stable")[:, :neighbours]
    unit = np.mean([away_NN[row, other] for row in range(len(points_ND)) for other in near_NK[row]])
    difficulty_N = (score_N - score_N.min()) / (score_N.max() - score_N.min())
    has = [
        difficulty_N[row] + sum(np.exp(-gamma * away_NN[row, other] / unit) * difficulty_N[other] for other in near_NK[row]) for row in range(len(points_ND))
    ]
    chosen: list[int] = []
    for _ in range(wanted):
        row = max((row for row in range(len(has)) if row not in chosen), key=lambda row: (has[row], -row))
        chosen.append(row)
        for other in near_NK[row]:
            has[other] -= np.exp(-gamma * away_NN[row, other] / unit) * max(has[row], 0)
    return {f"sample{row:04}" for row in chosen}


@pytest.mark.parametrize(("neighbours", "gamma"), [(1, 1.0), (5, 1.0), (8, 0.1), (5, 4.0)])
def test_agrees_with_a_direct_calculation(neighbours, gamma):
    rng = np.random.default_rng(neighbours)
    points_ND, score_N = rng.normal(size=(60, 3)).astype(np.float32), rng.random(60)
    for wanted in (1, 7, 30, 60):
        found = kept(choose(d2, points_ND, columns={"el2n": score_N}, score="el2n", keep_rows=wanted, neighbours=neighbours, gamma=gamma))
        assert found == directly(points_ND, score_N, wanted, neighbours, gamma)


def test_the_hard_end_of_a_margin_is_the_low_one():
    rng = np.random.default_rng(0)
    points_ND, score_N = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=40)
    assert kept(choose(d2, points_ND, columns={"aum": score_N}, score="aum", keep_rows=9, neighbours=4)) == directly(points_ND, -score_N, 9, 4, 1.0)


def test_a_chosen_row_takes_from_its_neighbours():
    # Two places: three rows of the first are harder than all of the second, but two stay, and the second of them is from there.
    points_ND = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]], np.float32)
    hard = [1.0, 1.0, 1.0, 0.6, 0.6, 0.5]
    assert kept(choose(by_score, points_ND, columns={"el2n": hard}, score="el2n", order="hardest", keep_rows=2)) <= {"sample0000", "sample0001", "sample0002"}
    spread = kept(choose(d2, points_ND, columns={"el2n": hard}, score="el2n", keep_rows=2, neighbours=2, gamma=0.1))
    assert len(spread & {"sample0000", "sample0001", "sample0002"}) == 1


def test_without_messages_it_is_the_hardest():
    rng = np.random.default_rng(1)
    points_ND, score_N = rng.normal(size=(50, 4)).astype(np.float32), rng.random(50)
    found = kept(choose(d2, points_ND, columns={"el2n": score_N}, score="el2n", keep_rows=12, cut_off=0.1, gamma=1e9))
    assert found == kept(choose(by_score, points_ND, columns={"el2n": score_N}, score="el2n", order="hardest", keep_rows=12, cut_off=0.1))


def test_the_hardest_leave_first_and_reasons_say_so():
    score = [place / 10 for place in range(10)]
    chosen = choose(d2, np.arange(10, dtype=np.float32)[:, None], columns={"el2n": score}, score="el2n", keep_rows=2, cut_off=0.2, neighbours=1)
    assert chosen["reason"][9] == "el2n 0.9: the hardest 2 of 10 in class 0 are cut off"
    assert chosen["reason"][0] == "el2n 0: 0.05255 is left of it and its neighbours'; 2 of 8 in class 0 had more when they were chosen"


def test_alike_and_infinite_scores_and_rows_that_can_not_be_judged():
    points_ND = np.array([[0.0], [1.0], [5.0], [np.nan], [6.0]], np.float32)
    alike = choose(d2, points_ND, columns={"el2n": [1.0, 1.0, 1.0, 1.0, None]}, score="el2n", keep_rows=2, neighbours=1)
    assert alike["kind"].to_list() == [None, "dropped", None, "rejected", "rejected"]
    assert alike["reason"].to_list()[3:] == ["embedding holds NaN or infinity", "no el2n to rank by: null or NaN"]
    endless = choose(d2, points_ND[:3], columns={"forgetting": [np.inf, 2.0, 0.0]}, score="forgetting", keep_rows=1, gamma=1e9)
    assert kept(endless) == {"sample0000"}


def test_a_class_of_one_row_has_no_neighbours():
    points_ND = np.array([[0.0], [1.0], [2.0]], np.float32)
    assert kept(choose(d2, points_ND, [0, 0, 1], columns={"el2n": [0.1, 0.2, 0.3]}, score="el2n", images_per_class=1)) == {"sample0001", "sample0002"}
