"""prune.k_medoids against enumeration and against every single swap; budgets, order, threads."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from stillroom.operators import Draw
from tasks.coverage import k_medoids as cluster
from tasks.prune.k_medoids import KMedoidsParams, k_medoids
from tests.tasks.prune.choosing import kept


def samples(vectors_ND: np.ndarray, labels: list[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"sample{place:04}" for place in range(len(vectors_ND))], "label": labels or [0] * len(vectors_ND)})


def choose(frame: pl.DataFrame, vectors_ND: np.ndarray, seed: int = 0, **params: object) -> pl.DataFrame:
    chosen = k_medoids({"samples": frame}, {"embedding": vectors_ND}, KMedoidsParams(**params), Draw(seed, "prune.k_medoids")).collect()
    return frame.hstack(chosen)


def cost(distances_NN: np.ndarray, medoids: tuple[int, ...]) -> float:
    return distances_NN[:, list(medoids)].min(axis=1).sum()


def test_keeps_the_middle_of_each_heap_with_its_size_and_names_it_to_the_others():
    line = np.array([[0.0], [1.0], [2.0], [100.0], [101.0], [102.0], [104.0]], np.float32)
    chosen = choose(samples(line), line, keep_rows=2)
    # Of the second heap 101 and 102 both come to a sum of 5; sample0005 or sample0004 is right.
    assert "sample0001" in kept(chosen)
    assert chosen["cluster_size"].drop_nulls().to_list() == [3, 4]
    assert chosen["reason"][0] == "nearest medoid sample0001 at distance 1"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_finds_the_best_medoids_of_small_sets_as_enumeration_does(count):
    best = 0
    for seed in range(40):
        points_ND = np.random.default_rng(seed).normal(size=(12, 2))
        distances_NN = cdist(points_ND, points_ND)
        optimum = min(cost(distances_NN, medoids) for medoids in combinations(range(12), count))
        found = cluster(points_ND, count, np.random.default_rng(seed), 6000).distance.sum()
        assert optimum * (1 - 1e-6) <= found <= 1.15 * optimum
        best += found < optimum * (1 + 1e-5)
    assert best >= 30


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=25), st.data())
def test_no_single_swap_makes_it_better(points, data):
    points_ND = np.array(points, np.float32)
    count = data.draw(st.integers(1, len(points)))
    found = cluster(points_ND, count, np.random.default_rng(0), 6000)
    distances_NN = cdist(points_ND, points_ND)
    total = cost(distances_NN, tuple(found.medoids))
    assert len(set(found.medoids)) == count
    assert found.distance == pytest.approx(distances_NN[:, found.medoids].min(axis=1), abs=1e-6)
    for slot in range(count):
        for other in range(len(points)):
            swapped = (*found.medoids[:slot], other, *found.medoids[slot + 1 :])
            assert cost(distances_NN, swapped) >= total * (1 - 1e-5) - 1e-6


def test_beats_a_random_choice_by_far_on_digits():
    pixels_ND, labels = load_digits(return_X_y=True)
    zeros_ND = pixels_ND[labels == 0]
    found = cluster(zeros_ND, 18, np.random.default_rng(0), 6000).distance.sum()
    drawn = np.mean([cdist(zeros_ND, zeros_ND[np.random.default_rng(seed).choice(len(zeros_ND), 18, replace=False)]).min(axis=1).sum() for seed in range(10)])
    assert found < 0.92 * drawn


@pytest.mark.parametrize("count", [3, 30, 90])
def test_parts_of_a_large_class_come_close_to_treating_it_whole(count):
    pixels_ND, _labels = load_digits(return_X_y=True)
    pixels_ND = pixels_ND[np.random.default_rng(0).permutation(1000)]
    whole = cluster(pixels_ND, count, np.random.default_rng(0), 6000)
    parts = cluster(pixels_ND, count, np.random.default_rng(0), 300)
    assert len(set(parts.medoids)) == count
    # Random choices come to 1.06 to 1.23 times the whole.
    assert parts.distance.sum() < {3: 1.01, 30: 1.04, 90: 1.08}[count] * whole.distance.sum()


def test_twins_of_medoids_fill_a_budget_that_exceeds_the_different_rows():
    points_ND = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    chosen = choose(samples(points_ND), points_ND, keep_rows=8)
    assert len(kept(chosen)) == 8
    assert chosen["cluster_size"].sum() == 12


def test_the_same_for_any_number_of_threads():
    vectors_ND = np.random.default_rng(0).normal(size=(700, 96)).astype(np.float32)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            results.append(choose(samples(vectors_ND), vectors_ND, keep="20%"))
    assert results[0].equals(results[1])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_exact_budget_whatever_the_order_of_rows(labels, wanted, shuffler):
    vectors_ND = np.random.default_rng(len(labels)).normal(size=(len(labels), 3)).astype(np.float32)
    frame = samples(vectors_ND, labels)
    order = list(range(len(labels)))
    shuffler.shuffle(order)
    straight, shuffled = choose(frame, vectors_ND, keep_rows=wanted), choose(frame[order], vectors_ND[order], keep_rows=wanted)
    assert len(kept(straight)) == min(wanted, len(labels))
    assert straight[order].equals(shuffled)


def test_every_class_keeps_its_quota_and_all_its_rows_are_counted():
    vectors_ND = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    chosen = choose(samples(vectors_ND, [0] * 10 + [1] * 20 + [2] * 30), vectors_ND, images_per_class=4)
    stay = chosen.filter(pl.col("reason").is_null()).group_by("label").agg(pl.len(), pl.col("cluster_size").sum()).sort("label")
    assert stay.rows() == [(0, 4, 10), (1, 4, 20), (2, 4, 30)]


def test_rows_with_nan_or_infinity_are_rejected_and_poison_nothing():
    vectors_ND = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    vectors_ND[[3, 40], 1] = np.nan, np.inf
    chosen = choose(samples(vectors_ND), vectors_ND, keep_rows=10)
    assert chosen.filter(pl.col("kind") == "rejected")["reason"].to_list() == ["embedding holds NaN or infinity"] * 2
    assert chosen["kind"][3] == chosen["kind"][40] == "rejected"
    assert len(kept(chosen)) == 10
    assert chosen["cluster_size"].sum() == 98


def test_normalised_vectors_differ_by_their_angle_alone():
    rays_ND = np.array([[1, 0], [50, 0], [200, 1], [0, 1], [0, 70], [0, 0]], np.float32)
    chosen = choose(samples(rays_ND[:5]), rays_ND[:5], keep_rows=2, normalise=True)
    assert sorted(chosen["cluster_size"].drop_nulls()) == [2, 3]
    assert len(kept(choose(samples(rays_ND), rays_ND, keep_rows=3, normalise=True))) == 3


def test_another_seed_may_choose_otherwise_and_one_seed_repeats():
    vectors_ND = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    frame = samples(vectors_ND)
    assert kept(choose(frame, vectors_ND, keep_rows=30)) == kept(choose(frame, vectors_ND, keep_rows=30))
    assert kept(choose(frame, vectors_ND, keep_rows=30)) != kept(choose(frame, vectors_ND, seed=1, keep_rows=30))
