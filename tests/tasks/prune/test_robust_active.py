"""prune.robust_active: the best probabilities by a linear program, draws that follow them, and nested budgets."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from scipy.optimize import linprog

from stillroom.errors import InputError
from tasks.prune.robust_active import robust_active, sampling_weights
from tests.tasks.prune.choosing import choose, kept


def asked(margins: list[float | None], seed: int = 0, ids: list[str] | None = None, **params: object) -> pl.DataFrame:
    return choose(robust_active, np.zeros((len(margins), 1)), ids=ids, columns={"margin": margins}, seed=seed, **params)


def worst(weights_R: np.ndarray, gain_R: np.ndarray, wrong: int) -> float:
    """What the draw is worth if the teacher errs on those rows where it hurts most."""
    worth_R = np.sort(weights_R * gain_R)[::-1]
    return float(worth_R.sum() - 2 * worth_R[:wrong].sum())


@pytest.mark.parametrize(("seed", "wrong"), [(0, 0), (1, 1), (2, 3), (3, 5), (4, 8)])
def test_no_probabilities_do_better_in_the_worst_case(seed, wrong):
    gain_R = np.random.default_rng(seed).uniform(0.01, 1, 20)
    weights_R = sampling_weights(gain_R, np.argsort(-gain_R), wrong)
    assert weights_R.sum() == pytest.approx(1)
    # The best p against the worst `wrong` rows: the sum of the largest is the dual wrong · t + sum of what exceeds t.
    # Variables: p [20], t, excess [20].
    cost = np.concatenate([-gain_R, [2 * wrong], np.full(20, 2.0)])
    exceeds = np.hstack([np.diag(gain_R), -np.ones((20, 1)), -np.eye(20)])
    best = linprog(cost, A_ub=exceeds, b_ub=np.zeros(20), A_eq=[[1] * 20 + [0] * 21], b_eq=[1], bounds=(0, None))
    assert worst(weights_R, gain_R, wrong) == pytest.approx(-best.fun, abs=1e-9)


def test_an_unerring_teacher_is_asked_for_what_the_student_is_least_sure_of():
    assert kept(asked([0.9, 0.1, 0.5, 0.2], keep_rows=2, teacher_accuracy="100%")) == {"sample0001", "sample0003"}


def test_the_first_draw_follows_the_probabilities():
    margins = [0.0, 0.3, 0.5, 0.6, 0.9]
    chosen = [asked(margins, seed, keep_rows=1, teacher_accuracy=0.8) for seed in range(600)]
    weights = sampling_weights(1 - np.array(margins), np.arange(5), 1.0)
    shares = np.mean([found["reason"].is_null().to_numpy() for found in chosen], axis=0)
    assert 2 < np.count_nonzero(weights) < 5
    assert np.abs(shares - weights).max() < 0.06
    assert chosen[0]["sampling_weight"].to_list() == pytest.approx(weights.tolist(), abs=1e-6)


def test_a_larger_budget_keeps_what_a_smaller_one_keeps_and_the_order_of_rows_has_no_say():
    margins = np.random.default_rng(0).random(80)
    sets = [kept(asked(margins.tolist(), keep_rows=rows, teacher_accuracy=0.8)) for rows in (5, 20, 50, 80)]
    assert [len(found) for found in sets] == [5, 20, 50, 80]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    order = np.random.default_rng(1).permutation(80)
    assert kept(asked(margins[order].tolist(), ids=[f"sample{row:04}" for row in order], keep_rows=20, teacher_accuracy=0.8)) == sets[1]
    assert kept(asked(margins.tolist(), seed=1, keep_rows=20, teacher_accuracy=0.8)) != sets[1]


def test_rows_without_a_margin_are_rejected_and_a_sure_student_is_no_fault():
    chosen = asked([1.0, None, 1.0, float("nan")], keep_rows=1, teacher_accuracy=0.7)
    assert chosen["kind"].null_count() == 1
    assert chosen["reason"][1] == "no margin: null or NaN"
    assert asked([1.0, 0.2], keep_rows=1, teacher_accuracy=0.9)["reason"].drop_nulls().to_list() == [
        "margin 1: not among the 1 drawn from the 1 of 2 in the table"
    ]


def test_refuses():
    with pytest.raises(InputError, match="margin 'margin': lies outside 0 to 1"):
        asked([3.1, -0.2], keep_rows=1, teacher_accuracy=0.9)
    with pytest.raises(ValidationError, match="greater than 0.5"):
        asked([0.1], keep_rows=1, teacher_accuracy="50%")
