"""score.prototypes against scikit-learn's k-means, and its independence of order, blocks and what else must not count."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans

import stillroom
from stillroom.errors import InputError
from stillroom.fields import label_field, score_facts, vector_field
from tasks.hardness import HARD_END
from tasks.score import prototypes as module
from tasks.score.prototypes import PrototypesParams, prototypes


def blobs(rows: int = 300, clusters: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around centres that lie far apart, and which centre each is of."""
    draws = np.random.default_rng(seed)
    of_N = np.arange(rows) % clusters
    return (10 * np.eye(clusters, 6)[of_N] + draws.normal(0, 1, (rows, 6))).astype(np.float32), of_N


def table(vectors_ND: np.ndarray, labels_N: np.ndarray | None = None, ids: list[str] | None = None) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    fields = [pa.field("sample_id", pa.string()), vector_field("embedding", vectors_ND.shape[1])]
    columns = [pa.array(ids or [f"s{row:04}" for row in range(len(vectors_ND))]), flat]
    if labels_N is not None:
        fields, columns = [*fields, label_field([str(label) for label in range(labels_N.max() + 1)])], [*columns, pa.array(labels_N)]
    return pa.table(columns, schema=pa.schema(fields))


def distances(frame: pa.Table, **params: object) -> np.ndarray:
    kept = stillroom.apply("score.prototypes", frame, **params).kept
    return kept.sort("sample_id")["prototype_distance"].to_numpy()


def test_distances_are_those_of_scikit_learns_clusters():
    vectors_ND, _ = blobs()
    theirs = KMeans(4, n_init=10, random_state=0).fit(vectors_ND.astype(np.float64))
    assert distances(table(vectors_ND), clusters=4) == pytest.approx(theirs.transform(vectors_ND.astype(np.float64)).min(axis=1), rel=1e-5)


def test_ends_where_no_centre_moves():
    # Without clusters in the data it takes many rounds, to one of several optima.
    vectors_ND = np.random.default_rng(1).random((400, 3)).astype(np.float32)
    theirs = KMeans(7, n_init=20, random_state=0, tol=0, max_iter=500).fit(vectors_ND.astype(np.float64))
    found = stillroom.apply("score.prototypes", table(vectors_ND), clusters=7, iterations=500)
    assert 3 < found.metrics["k-means"]["rounds"] < 500
    assert found.metrics["k-means"]["clusters"] == 7
    assert 0.999 < np.square(found.kept["prototype_distance"].to_numpy()).sum() / theirs.inertia_ < 1.1  # the best of twenty starts


def test_few_rounds_are_fewer():
    vectors_ND = np.random.default_rng(1).random((400, 3)).astype(np.float32)
    found = stillroom.apply("score.prototypes", table(vectors_ND), clusters=7, iterations=2)
    assert found.metrics["k-means"]["rounds"] == 2


def test_neither_the_order_of_rows_nor_the_size_of_blocks_counts(monkeypatch):
    vectors_ND = np.random.default_rng(2).normal(size=(500, 5)).astype(np.float32)
    ids, order = [f"s{row:04}" for row in range(500)], np.random.default_rng(3).permutation(500)
    expected = distances(table(vectors_ND), clusters=9)
    monkeypatch.setattr(module, "BLOCK", 64)
    shuffled = distances(table(vectors_ND[order], ids=[ids[row] for row in order]), clusters=9)
    assert shuffled.tobytes() == expected.tobytes()
    assert distances(table(vectors_ND), clusters=9, seed=1).tobytes() != expected.tobytes()  # another start


def test_rows_far_from_every_cluster_are_at_the_hard_end():
    vectors_ND, _ = blobs()
    vectors_ND[::50] += 5
    found = distances(table(vectors_ND), clusters=4)
    assert HARD_END["prototype_distance"] == "high"
    assert set(np.argsort(found)[-6:]) == set(range(0, 300, 50))


def test_clusters_are_as_many_as_classes_unless_told():
    vectors_ND, of_N = blobs()
    assert (distances(table(vectors_ND, of_N)) == distances(table(vectors_ND), clusters=4)).all()
    assert prototypes.inputs["samples"].columns(PrototypesParams()) == ["embedding", "label"]
    assert prototypes.inputs["samples"].columns(PrototypesParams(clusters=4, vectors="deep")) == ["deep"]


def test_one_cluster_is_the_distance_to_the_mean():
    vectors_ND, _ = blobs()
    far_N = np.linalg.norm(vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64), axis=1)
    assert distances(table(vectors_ND), clusters=1) == pytest.approx(far_N, rel=1e-5)


def test_vectors_of_length_1_forget_their_length():
    vectors_ND, _ = blobs()
    longer_ND = vectors_ND * np.random.default_rng(0).uniform(1, 50, (300, 1)).astype(np.float32)
    longer_ND[7] = vectors_ND[7] = 0  # of no length at all
    found = distances(table(vectors_ND), clusters=4, normalise=True)
    assert distances(table(longer_ND), clusters=4, normalise=True) == pytest.approx(found, abs=1e-5)
    assert found.max() <= 2


def test_every_row_is_its_own_cluster_where_there_are_no_more():
    vectors_ND = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0], [5.0, 5.0]], np.float32)
    assert distances(table(vectors_ND), clusters=10).tolist() == [0, 0, 0, 0]
    assert distances(table(np.zeros((3, 2), np.float32)), clusters=2).tolist() == [0, 0, 0]


def test_a_row_without_finite_numbers_has_no_score_and_moves_no_centre():
    vectors_ND, _ = blobs()
    without = distances(table(vectors_ND[2:]), clusters=4)
    vectors_ND[0, 3], vectors_ND[1, 0] = np.nan, np.inf
    kept = stillroom.apply("score.prototypes", table(vectors_ND), clusters=4).kept
    assert kept["prototype_distance"].is_null().arg_true().to_list() == [0, 1]
    assert kept["prototype_distance"].drop_nulls().to_numpy() == pytest.approx(without, rel=1e-5)
    assert stillroom.apply("prune.by_score", kept.with_columns(label=pl.lit(0)), score="prototype_distance", order="easiest", keep_rows=9).kept.height == 9


def test_no_finite_row_at_all_is_refused():
    with pytest.raises(InputError, match="none of 3 rows has a vector of finite numbers"):
        distances(table(np.full((3, 2), np.nan, np.float32)), clusters=2)


def test_the_score_says_what_it_was_made_by():
    field = prototypes.added(PrototypesParams(vectors="deep", clusters=12, normalise=True), {})["prototype_distance"]
    facts = {"hard": "high", "low": 0, "high": 2, "vectors": "deep", "clusters": 12, "iterations": 100, "normalise": True}
    assert score_facts(field) == facts
