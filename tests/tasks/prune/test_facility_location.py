"""prune.facility_location against brute force and naive greedy; its weights; and a class of which only some rows may stay."""

from itertools import combinations
from math import e

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.prune.facility_location import facility_location, located
from tests.tasks.prune.choosing import choose, kept

POINTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


def value(away_NN: np.ndarray, chosen: tuple[int, ...] | list[int]) -> float:
    """The facility location of a choice; the similarity is the largest distance less the distance."""
    return float((away_NN.max() - away_NN[list(chosen)].min(axis=0)).sum())


def distances(points_ND: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points_ND[:, None].astype(np.float64) - points_ND[None], axis=2)


@pytest.mark.parametrize("seed", range(8))
def test_is_near_the_optimum_that_trying_everything_finds(seed):
    points_ND = np.random.default_rng(seed).normal(size=(10, 2)).astype(np.float32)
    away_NN = distances(points_ND)
    for count in (1, 2, 4):
        best = max(value(away_NN, chosen) for chosen in combinations(range(10), count))
        found = value(away_NN, located(points_ND, np.arange(10), count)[0].tolist())
        assert (1 - 1 / e) * best <= found <= best + 1e-9
        assert count > 1 or found == pytest.approx(best)


@given(POINTS, st.data())
def test_lazy_greedy_is_naive_greedy_to_the_last_tie(points, data):
    points_ND = np.array(points, np.float32)
    count = data.draw(st.integers(1, len(points)))
    # Distances as a square root of whole numbers, in whole multiples of 2^-40, so that sums here are exact, too.
    away_NN = np.rint(np.sqrt(((points_ND[:, None] - points_ND[None]) ** 2).sum(axis=2, dtype=np.float64)) * 2**40)
    chosen: list[int] = []
    for _ in range(count):
        least_N = away_NN[chosen].min(axis=0) if chosen else np.full(len(points), 2.0**44)
        gains = [-1.0 if row in chosen else np.maximum(least_N - away_NN[row], 0).sum() for row in range(len(points))]
        chosen.append(int(np.argmax(gains)))
    found, nearest, _ = located(points_ND, np.arange(len(points)), count)
    assert found.tolist() == chosen
    assert (nearest[found] == found).all()
    assert (away_NN[np.arange(len(points)), nearest] == away_NN[:, found].min(axis=1)).all()


def test_weights_are_how_many_a_row_stands_for_and_sum_to_the_rows_that_stay():
    points_ND = np.array([[0.0], [0.1], [0.2], [5.0], [0.0], [9.0]], np.float32)
    chosen = choose(facility_location, points_ND, [0, 0, 0, 0, 1, 1], images_per_class=2)
    assert kept(chosen) == {"sample0001", "sample0003", "sample0004", "sample0005"}
    # They stand for 3, 1, 1 and 1 of six rows, and four stay.
    assert chosen["weight"].to_list() == pytest.approx([None, 2.0, None, 2 / 3, 2 / 3, 2 / 3])
    assert chosen["reason"][0] == "nearest kept row sample0001 at distance 0.1"


@pytest.mark.parametrize("labels", [None, [row % 7 == 0 for row in range(90)]])
def test_weights_sum_to_the_rows_that_stay_in_classes_of_unlike_size(labels):
    points_ND = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    chosen = choose(facility_location, points_ND, labels and [int(label) for label in labels], keep_rows=20)
    assert chosen["weight"].sum() == pytest.approx(20, abs=1e-5)
    stands_for = chosen["weight"].drop_nulls().to_numpy() * 90 / 20
    assert np.abs(stands_for - np.rint(stands_for)).max() < 1e-5
    assert stands_for.min() > 0.99
    assert stands_for.sum() == pytest.approx(90, abs=1e-3)


def test_twins_stay_one_by_one_each_for_itself():
    chosen = choose(facility_location, np.zeros((4, 2), np.float32), keep_rows=3)
    assert kept(chosen) == {"sample0000", "sample0001", "sample0002"}
    assert chosen["weight"].to_list() == pytest.approx([1.5, 0.75, 0.75, None])


def test_a_large_class_chooses_among_rows_that_are_drawn_and_stays_a_ranking():
    points_ND = np.random.default_rng(2).normal(size=(400, 2)).astype(np.float32)
    sets = [kept(choose(facility_location, points_ND, candidates=100, keep_rows=rows, seed=5)) for rows in (20, 90, 150, 300)]
    assert [len(found) for found in sets] == [20, 90, 150, 300]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert kept(choose(facility_location, points_ND, candidates=100, keep_rows=20, seed=6)) != sets[0]
    exact, drawn = (choose(facility_location, points_ND, candidates=among, keep_rows=20) for among in (1000, 100))
    spread = [distances(points_ND)[found["reason"].is_null().to_numpy()].min(axis=0).sum() for found in (exact, drawn)]
    assert spread[0] <= spread[1] <= 1.15 * spread[0]


def test_rows_without_a_usable_vector_are_rejected():
    chosen = choose(facility_location, np.array([[0.0], [np.nan], [1.0]], np.float32), keep_rows=2)
    assert chosen.select("kind", pl.col("weight").is_null()).rows() == [(None, False), ("rejected", True), (None, False)]
