"""How columns drifted: numbers by quantiles and the Kolmogorov-Smirnov distance, classes by their shares, labels by who became what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

__all__ = ["Balance", "ClassCount", "Drift", "Relabelled", "Summary", "balance", "ks_distance", "number_drift", "relabelled", "summary"]

# N = values before, M = values after

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NO_LABEL = "(no label)"
# The distance that samples of one distribution exceed once in a hundred is this by sqrt(1/N + 1/M) (Smirnov 1948).
_SMIRNOV_1_PERCENT = 1.628


@dataclass(frozen=True)
class Summary:
    """A column of numbers: how many, how many null, NaN or infinite; mean of the finite; quantiles, infinities included."""

    rows: int
    missing: int
    infinite: int
    mean: float | None
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """One column in one split, before and after.

    `ks` is the largest difference of the two distribution functions, 0 to 1. Two samples of one
    distribution, of these sizes, exceed `noise` once in a hundred. None where a side has no value.
    """

    column: str
    split: str
    before: Summary
    after: Summary
    ks: float | None
    noise: float | None

    @property
    def drifted(self) -> bool:
        """Whether the distributions differ by more than chance explains."""
        return self.ks is not None and self.noise is not None and self.ks > self.noise


@dataclass(frozen=True)
class ClassCount:
    """Rows of a class."""

    label: str
    before: int
    after: int


@dataclass(frozen=True)
class Balance:
    """The classes of a split. `distance` is the share of rows that would have to change class for equal shares (total variation)."""

    split: str
    distance: float
    classes: list[ClassCount]


@dataclass(frozen=True)
class Relabelled:
    """Rows that both snapshots have, whose label is another."""

    column: str
    before: str
    after: str
    rows: int


def number_drift(column: str, split: str, before_N: np.ndarray, after_M: np.ndarray) -> Drift:
    """Compare two samples of a column; null and NaN are missing, infinity is a number like others."""
    kept = [values[~np.isnan(values)] for values in (before_N, after_M)]
    sizes = [len(values) for values in kept]
    before, after = summary(before_N), summary(after_M)
    if not all(sizes):
        return Drift(column, split, before, after, None, None)
    noise = _SMIRNOV_1_PERCENT * math.sqrt(sum(1 / size for size in sizes))
    return Drift(column, split, before, after, ks_distance(*kept), min(1.0, noise))


def summary(values_N: np.ndarray) -> Summary:
    """Count, mean and quantiles of float64 [N]; a quantile is one of the values (the smallest with at least that share at or below it)."""
    known = values_N[~np.isnan(values_N)]
    finite = known[np.isfinite(known)]
    mean = float(finite.mean()) if len(finite) else None
    quantiles = tuple(float(value) for value in np.quantile(known, QUANTILES, method="inverted_cdf")) if len(known) else ()
    return Summary(len(values_N), len(values_N) - len(known), len(known) - len(finite), mean, quantiles)


def ks_distance(before_N: np.ndarray, after_M: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov distance: max over x of |F_before(x) - F_after(x)|."""
    before_N, after_M = np.sort(before_N), np.sort(after_M)
    everything = np.concatenate([before_N, after_M])
    below = [np.searchsorted(side, everything, side="right") / len(side) for side in (before_N, after_M)]
    return float(np.abs(below[0] - below[1]).max())


def balance(split: str, before: pl.Series, after: pl.Series, order: Sequence[str] = ()) -> Balance:
    """Rows by class name before and after; classes in the given order, then by name."""
    sides = [dict(series.fill_null(NO_LABEL).value_counts(name="rows").iter_rows()) for series in (before, after)]
    names = [name for name in dict.fromkeys(order) if any(name in side for side in sides)]
    names += sorted({name for side in sides for name in side} - set(names), key=lambda name: (name == NO_LABEL, len(name), name))
    classes = [ClassCount(name, *(side.get(name, 0) for side in sides)) for name in names]
    totals = [max(1, sum(side.values())) for side in sides]
    distance = sum(abs(one.before / totals[0] - one.after / totals[1]) for one in classes) / 2 if all(sides) else float(any(sides))
    return Balance(split, distance, classes)


def relabelled(column: str, before: pl.Series, after: pl.Series) -> list[Relabelled]:
    """Who became what, of rows in one order; the largest group first."""
    frame = pl.DataFrame({"before": before.fill_null(NO_LABEL), "after": after.fill_null(NO_LABEL)})
    grouped = (
        frame.filter(pl.col("before") != pl.col("after"))
        .group_by("before", "after")
        .len("rows")
        .sort("rows", "before", "after", descending=[True, False, False])
    )
    return [Relabelled(column, *line) for line in grouped.iter_rows()]
