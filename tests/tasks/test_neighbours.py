"""HammingIndex against a comparison of all pairs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import neighbours
from tasks.neighbours import HammingIndex, nearest

FLIPS = st.lists(st.integers(0, 63), max_size=6)


def all_pairs(hashes_N: np.ndarray, max_distance: int) -> set[tuple[int, int, int]]:
    distance_NN = np.bitwise_count(hashes_N[:, None] ^ hashes_N)
    return {(i, j, int(distance_NN[i, j])) for j in range(len(hashes_N)) for i in range(j) if distance_NN[i, j] <= max_distance}


def found(hashes_N: np.ndarray, max_distance: int, cuts: list[int]) -> list[tuple[int, int, int]]:
    index = HammingIndex(hashes_N, max_distance)
    lots = [pairs for start, stop in pairwise([0, *sorted(cuts), len(hashes_N)]) for pairs in index.pairs(start, stop)]
    return [tuple(pair) for pairs in lots for pair in np.stack(pairs).T.tolist()]


@given(st.lists(st.tuples(st.integers(0, 3), FLIPS), max_size=40), st.integers(0, 16), st.data())
def test_finds_each_pair_once_however_it_is_asked(rows, max_distance, data):
    stems = np.random.default_rng(0).integers(0, 2**63, 4, np.uint64)
    hashes_N = np.array([stems[stem] ^ np.uint64(sum({1 << bit for bit in flips})) for stem, flips in rows], np.uint64)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    pairs = found(hashes_N, max_distance, cuts)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == all_pairs(hashes_N, max_distance)


@pytest.mark.parametrize("max_distance", [0, 4, 10, 63])
def test_short_lots_change_nothing(monkeypatch, max_distance):
    monkeypatch.setattr(neighbours, "_CANDIDATES", 7)
    hashes_N = np.random.default_rng(0).integers(0, 2**9, 150, np.uint64)
    assert set(found(hashes_N, max_distance, [100])) == all_pairs(hashes_N, max_distance)


def test_compares_few_of_many_hashes():
    hashes_N = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    index = HammingIndex(hashes_N, 4)
    candidates = sum(int((place - begin).sum()) for place, begin in zip(index.places, index.begins, strict=True))
    assert candidates < 0.002 * 20_000**2 / 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.data())
def test_nearest_agrees_with_all_distances_sorted(points, data):
    points_ND = np.array(points, np.float32)
    count = data.draw(st.integers(0, len(points) - 1))
    away_NN = ((points_ND[:, None] - points_ND[None]) ** 2).sum(axis=2)
    np.fill_diagonal(away_NN, np.inf)
    expected = np.argsort(away_NN, axis=1, kind="stable")[:, :count]
    others, squares = nearest(points_ND, count)
    assert others.tolist() == expected.tolist()
    assert np.allclose(squares, np.take_along_axis(away_NN, expected, axis=1))


def test_nearest_in_blocks_is_nearest_at_once(monkeypatch):
    points_ND = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    whole = nearest(points_ND, 6)
    monkeypatch.setattr("tasks.neighbours._BLOCK", 400)
    assert all(np.array_equal(one, other) for one, other in zip(whole, nearest(points_ND, 6), strict=True))
