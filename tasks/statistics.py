"""How sure a mean over students and test samples is, and how well probabilities are calibrated."""

from typing import NamedTuple

import numpy as np

__all__ = ["CONFIDENCE", "Estimate", "calibration_error", "calibration_shares", "mean_interval"]

# S = seeds (students), N = test samples

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def mean_interval(values_SN: np.ndarray, lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """The mean of S students on the same N test samples, with the 95 % interval over other seeds and other samples.

    The values are crossed: value = mean + student + sample + rest, students and samples both drawn
    from what might have been. The mean squares of the two-way analysis of variance give the variance

        (max(MS_S - MS_rest, 0) + max(MS_N - MS_rest, 0) + MS_rest) / (S N)

    and the interval is Student's t with Satterthwaite's degrees of freedom. With one student it covers
    other samples only. Where all values are equal, variance says nothing: the interval then has the
    exact binomial half width 1 - 0.025^(1/N), as if one thing that N samples didn't show could still be.

    Args:
        values_SN: float or bool [S, N]: right or wrong, or the difference of two students of a seed.
        lowest: the least that a value can be; the interval ends there.
        highest: the most that a value can be.

    Returns:
        An estimate; from `lowest` to `highest` where there are fewer than two samples.

    Sources:
        Searle, Casella, McCulloch, Variance Components (1992), section 4.7; Satterthwaite (1946).
    """
    from scipy.stats import t

    values_SN = np.asarray(values_SN, np.float64)
    seeds, samples = values_SN.shape
    mean = float(values_SN.mean())
    if samples < 2:
        return Estimate(mean, lowest, highest)
    if np.ptp(values_SN) == 0:
        half = 1 - ((1 - CONFIDENCE) / 2) ** (1 / samples)
    else:
        square, freedom = _square_and_freedom(values_SN)
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * float(np.sqrt(square / (seeds * samples)))
    return Estimate(mean, max(lowest, mean - half), min(highest, mean + half))


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, 0 (calibrated) to 1.

    sum_b (n_b / N) |accuracy_b - confidence_b| over `bins` bins of equal width, each open below and
    closed above (Guo et al., ICML 2017).

    Args:
        confidence_N: probability of the class that was predicted, 0 to 1.
        correct_N: whether that class was right.
    """
    return float(calibration_shares(confidence_N, correct_N, bins).mean())


def calibration_shares(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> np.ndarray:
    """What each sample has in the expected calibration error, [N]; the mean of these is the error.

    In a bin that is surer than right, its confidence less whether it was right; in any other the reverse.
    So `mean_interval` gives the error an interval, and the difference of two a paired one. It takes the side
    on which a bin errs as known: where bins are calibrated to within their noise, that is too sure.
    """
    confidence_N, correct_N = np.asarray(confidence_N, np.float64), np.asarray(correct_N, np.float64)
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    apart_b = np.bincount(bin_N, correct_N - confidence_N, bins)
    return np.sign(apart_b)[bin_N] * (correct_N - confidence_N)


def _square_and_freedom(values_SN: np.ndarray) -> tuple[float, float]:
    """S N times the variance of the mean, and its degrees of freedom."""
    seeds, samples = values_SN.shape
    of_seed_S1, of_sample_1N = values_SN.mean(axis=1, keepdims=True), values_SN.mean(axis=0, keepdims=True)
    square_N, freedom_N = seeds * float(of_sample_1N.var(ddof=1)), samples - 1
    if seeds == 1:
        return square_N, freedom_N
    square_S, freedom_S = samples * float(of_seed_S1.var(ddof=1)), seeds - 1
    freedom_rest = freedom_S * freedom_N
    square_rest = float(np.square(values_SN - of_seed_S1 - of_sample_1N + values_SN.mean()).sum()) / freedom_rest
    # A mean square below the rest's says that this part shows no variance: the rest then stands for it.
    parts = [(square, freedom) for square, freedom in ((square_S, freedom_S), (square_N, freedom_N)) if square > square_rest]
    parts.append(((1 - len(parts)) * square_rest, freedom_rest))
    square = sum(part for part, _ in parts)
    return square, square**2 / sum(part**2 / freedom for part, freedom in parts)
