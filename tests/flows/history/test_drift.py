"""Drift against scipy and by hand; class balance and labels by counting."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from flows.history.drift import balance, ks_distance, number_drift, relabelled, summary

NUMBERS = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0, 2.0, math.inf]), min_size=1, max_size=30)


@given(NUMBERS, NUMBERS)
def test_the_distance_is_scipys(before, after):
    assert ks_distance(np.array(before), np.array(after)) == pytest.approx(ks_2samp(before, after).statistic)


def test_samples_of_one_distribution_exceed_the_noise_once_in_a_hundred():
    rng = np.random.default_rng(0)
    drifted = [number_drift("n", "train", rng.normal(size=300), rng.normal(size=200)).drifted for _ in range(1000)]
    assert 1 <= sum(drifted) <= 25
    assert number_drift("n", "train", rng.normal(size=300), rng.normal(0.6, size=200)).drifted


def test_quantiles_are_values_and_infinity_is_one_of_them():
    found = summary(np.array([0.0, 1.0, 2.0, math.inf, math.nan]))
    assert (found.rows, found.missing, found.infinite, found.mean) == (5, 1, 1, 1.0)
    assert found.quantiles == (0.0, 0.0, 1.0, 2.0, math.inf)


def test_a_column_without_values_on_one_side_has_no_distance():
    found = number_drift("n", "train", np.array([math.nan]), np.array([1.0]))
    assert (found.ks, found.noise, found.drifted, found.before.quantiles) == (None, None, False, ())


def test_the_distance_of_classes_is_the_share_that_would_have_to_change():
    found = balance("train", pl.Series(["cat"] * 3 + ["dog"]), pl.Series(["cat"] * 2 + ["owl"] * 2), ["dog", "cat"])
    assert [(one.label, one.before, one.after) for one in found.classes] == [("dog", 1, 0), ("cat", 3, 2), ("owl", 0, 2)]
    assert found.distance == pytest.approx(0.5)


def test_a_split_that_only_one_side_has_is_all_distance():
    assert balance("test", pl.Series([], dtype=pl.String), pl.Series(["cat"])).distance == 1
    assert balance("test", pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String)).distance == 0


def test_who_became_what_comes_by_size():
    found = relabelled("label", pl.Series(["cat", "cat", "dog", None]), pl.Series(["dog", "dog", "cat", "cat"]))
    assert [(line.before, line.after, line.rows) for line in found] == [("cat", "dog", 2), ("(no label)", "cat", 1), ("dog", "cat", 1)]
