"""DD-Ranking's figures: what a small set is worth once labels and augmentation are taken out of it.

Li et al., DD-Ranking (arXiv 2505.13300). All take right or wrong (or accuracies, 0 to 1) of S nets on N test
samples, and give the mean with its 95 % interval, paired by net and by sample.
"""

import math

import numpy as np

from tasks.statistics import Estimate, mean_interval

__all__ = ["augmentation_robust_score", "hard_label_recovery", "improvement_over_random", "label_robust_score", "scaled"]

# S = seeds (nets), N = test samples


def hard_label_recovery(real_SN: np.ndarray, hard_SN: np.ndarray) -> Estimate:
    """HLR: what is lost against training on all real samples, both with hard labels; -1 to 1, low is good."""
    return mean_interval(_less(real_SN, hard_SN), -1, 1)


def improvement_over_random(own_SN: np.ndarray, random_SN: np.ndarray) -> Estimate:
    """IOR: what is gained over as many random samples by the same recipe; -1 to 1, high is good."""
    return mean_interval(_less(own_SN, random_SN), -1, 1)


def label_robust_score(real_SN: np.ndarray, hard_SN: np.ndarray, own_SN: np.ndarray, random_SN: np.ndarray, weight: float = 0.5) -> Estimate:
    """LRS: `weight` IOR - (1 - `weight`) HLR on the scale of `scaled`; 0 to 1, high is good."""
    return _scaled(mean_interval(weight * _less(own_SN, random_SN) - (1 - weight) * _less(real_SN, hard_SN), -1, 1))


def augmentation_robust_score(
    augmented_SN: np.ndarray, random_augmented_SN: np.ndarray, plain_SN: np.ndarray, random_plain_SN: np.ndarray, weight: float = 0.5
) -> Estimate:
    """ARS: `weight` times the gain over random with augmentation, and 1 - `weight` times that without, on the scale of `scaled`; 0 to 1, high is good."""
    return _scaled(mean_interval(weight * _less(augmented_SN, random_augmented_SN) + (1 - weight) * _less(plain_SN, random_plain_SN), -1, 1))


def scaled(alpha: float) -> float:
    """(e^alpha - e^-1) / (e - e^-1): from -1 to 1 onto 0 to 1; 0 comes to 0.269."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def _less(one_SN: np.ndarray, other_SN: np.ndarray) -> np.ndarray:
    return np.asarray(one_SN, np.float64) - np.asarray(other_SN, np.float64)


def _scaled(alpha: Estimate) -> Estimate:
    # The scale only rises, so the ends of an interval go where its points go.
    return Estimate(*map(scaled, alpha))
