"""DD-Ranking's figures at points known from their formulas."""

import math

import numpy as np
import pytest

from tasks.evaluate._ranking import augmentation_robust_score, hard_label_recovery, improvement_over_random, label_robust_score, scaled


def nets(*accuracies: float) -> np.ndarray:
    """Right answers of a net to each of 20 samples: the first so many of them."""
    return np.array([np.arange(20) < round(20 * accuracy) for accuracy in accuracies])


def test_nothing_lost_and_nothing_gained_is_0_269():
    same = nets(0.5, 0.6)
    assert label_robust_score(same, same, same, same).mean == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    assert label_robust_score(same, same, same, same).mean == pytest.approx(0.269, abs=5e-4)
    assert augmentation_robust_score(same, same, same, same).mean == pytest.approx(0.269, abs=5e-4)


def test_the_scale_ends_at_0_and_1():
    assert (scaled(-1), scaled(1)) == pytest.approx((0, 1))


def test_recovery_counts_what_hard_labels_lose_and_improvement_what_own_ones_gain():
    real, hard, own, random = nets(0.9, 0.9), nets(0.6, 0.7), nets(0.7, 0.8), nets(0.5, 0.5)
    assert hard_label_recovery(real, hard).mean == pytest.approx(0.25)
    assert improvement_over_random(own, random).mean == pytest.approx(0.25)


def test_weights_share_the_scores_out():
    real, hard, own, random = nets(0.9, 0.9), nets(0.6, 0.6), nets(0.7, 0.7), nets(0.5, 0.5)
    assert label_robust_score(real, hard, own, random, weight=0.75).mean == pytest.approx(scaled(0.75 * 0.2 - 0.25 * 0.3))
    assert augmentation_robust_score(own, random, hard, random, weight=0.75).mean == pytest.approx(scaled(0.75 * 0.2 + 0.25 * 0.1))


def test_an_interval_holds_its_score_and_narrows_with_more_nets():
    real, random = nets(0.9, 0.9), nets(0.5, 0.45)
    few = label_robust_score(real, nets(0.6, 0.7), nets(0.6, 0.7), random)
    assert 0 <= few.low < few.mean < few.high <= 1
    rng = np.random.default_rng(0)
    own, other = rng.random((2, 10, 400)) < np.array([0.8, 0.6])[:, None, None]
    widths = [np.ptp(improvement_over_random(own[:seeds], other[:seeds])[1:]) for seeds in (2, 10)]
    assert widths[1] < widths[0]
