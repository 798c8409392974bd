"""tasks.statistics: intervals against scipy and against simulated truth, calibration against a sum by hand."""

import numpy as np
import pytest
from scipy import stats

from tasks.statistics import calibration_error, calibration_shares, mean_interval


def crossed(generator: np.random.Generator, seeds: int, samples: int, of_seed: float, of_sample: float) -> np.ndarray:
    """Right or wrong of S students on N samples, where students and samples differ in what they can and what they take."""
    skill_S1 = generator.normal(0, of_seed, (seeds, 1))
    ease_1N = generator.normal(2, of_sample, (1, samples))
    return skill_S1 + ease_1N + generator.logistic(size=(seeds, samples)) > 0


def test_one_student_has_the_t_interval_over_samples():
    right = np.random.default_rng(1).random((1, 200)) < 0.7
    low, high = stats.t.interval(0.95, 199, loc=right.mean(), scale=stats.sem(right[0]))
    assert mean_interval(right) == pytest.approx((right.mean(), low, high))


def test_students_that_agree_count_once():
    right = np.random.default_rng(2).random((1, 200)) < 0.7
    one, five = mean_interval(right), mean_interval(np.repeat(right, 5, axis=0))
    assert five == pytest.approx(one)


def test_students_that_differ_on_all_samples_alike_are_the_only_doubt():
    values = np.repeat([[0.2], [0.4], [0.6]], 50, axis=1)
    low, high = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem([0.2, 0.4, 0.6]))
    assert mean_interval(values, -1, 1) == pytest.approx((0.4, low, high))


@pytest.mark.parametrize(("of_seed", "of_sample"), [(0.0, 0.0), (0.0, 2.0), (0.3, 0.0), (0.3, 2.0)])
def test_covers_the_truth_about_as_often_as_it_says(of_seed, of_sample):
    generator = np.random.default_rng(3)
    truth = crossed(generator, 2000, 2000, of_seed, of_sample).mean()
    held = [low <= truth <= high for _, low, high in (mean_interval(crossed(generator, 5, 300, of_seed, of_sample)) for _ in range(400))]
    assert 0.92 <= np.mean(held) <= 0.99  # 400 tries: 1.1 % standard error


def test_agrees_with_a_bootstrap_over_samples():
    generator = np.random.default_rng(4)
    difference = crossed(generator, 4, 400, 0, 2).astype(float) - crossed(generator, 4, 400, 0, 2)
    _, low, high = mean_interval(difference, -1, 1)
    boot = stats.bootstrap((difference.mean(axis=0),), np.mean, n_resamples=2000, method="percentile", rng=5).confidence_interval
    assert high - low == pytest.approx(boot.high - boot.low, rel=0.1)


def test_the_interval_ends_where_values_end():
    right = np.ones((2, 30), bool)
    right[0, 0] = False
    assert mean_interval(right).high == 1


def test_a_perfect_score_is_not_certain():
    estimate = mean_interval(np.ones((3, 100), bool))
    exact = stats.binomtest(100, 100).proportion_ci(0.95, "exact")
    assert estimate == pytest.approx((1, exact.low, 1))


def test_one_sample_says_nothing():
    assert mean_interval(np.array([[1.0], [1.0]]), -1, 1) == (1, -1, 1)


def test_calibration_error_matches_a_hand_sum():
    # Bins of width 0.5: {0.4, 0.5 -> 1 of 2 right, mean 0.45}, {0.9 -> right}. 2/3 * 0.05 + 1/3 * 0.1
    assert calibration_error(np.array([0.4, 0.5, 0.9]), np.array([True, False, True]), bins=2) == pytest.approx(2 / 3 * 0.05 + 1 / 3 * 0.1)


def test_calibrated_guesses_have_no_error():
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)


def test_shares_of_the_calibration_error_carry_the_side_of_their_bin():
    # Up to 0.5: +0.6 and -0.5, together too unsure. Above: -0.9 and +0.2, together too sure, so signs turn.
    shares = calibration_shares(np.array([0.4, 0.5, 0.9, 0.8]), np.array([True, False, False, True]), bins=2)
    assert shares == pytest.approx([0.6, -0.5, 0.9, -0.2])
    assert shares.mean() == pytest.approx((0.1 + 0.7) / 4)


def test_a_difference_of_calibration_errors_is_the_mean_of_the_paired_differences():
    generator = np.random.default_rng(5)
    sure, unsure = generator.uniform(0.6, 1, 500), generator.uniform(0.3, 0.9, 500)
    right = generator.random(500) < 0.7
    paired = mean_interval((calibration_shares(sure, right) - calibration_shares(unsure, right))[None], -1, 1)
    assert paired.mean == pytest.approx(calibration_error(sure, right) - calibration_error(unsure, right))
