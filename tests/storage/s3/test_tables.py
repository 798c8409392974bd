"""Tables in a bucket: commits of several builders, commits whose answers were lost, and readers that know nothing of us."""

from concurrent.futures import ThreadPoolExecutor

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.errors import StoreError, UnreachableError
from stillroom.records import Record, TableRef, read_record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.manifests import list_manifests
from storage.publish import publish_manifest, write_version
from storage.records import put_record

SCHEMA = pa.schema([("sample_id", pa.string()), ("x", pa.int64())])


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([str(n) for n in numbers]), pa.array(numbers)], schema=SCHEMA)


def build(store: Store, number: int) -> TableRef:
    """Write and commit one row, as a stage would."""
    return commit_fragments(store, "stages/r.t", SCHEMA, write_batches(store, "stages/r.t", [batch(number)], SCHEMA), fingerprint=named(number))


def named(number: int) -> str:
    """A fingerprint of one's own."""
    return f"{number}".ljust(64, "f")


def rows_by_version(store: Store) -> dict[int, list[int]]:
    uri = store.table_uri("stages/r.t")
    return {version["version"]: lance.dataset(uri, version=version["version"]).to_table()["x"].to_pylist() for version in lance.dataset(uri).versions()}


def test_eight_builders_at_once_lose_nothing(s3):
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda number: build(Store(s3), number), range(8)))
    assert [StoredTable(Store(s3), ref).frame()["x"].item() for ref in refs] == list(range(8))
    assert len({ref.version for ref in refs}) == 8
    tags = lance.dataset(Store(s3).table_uri("stages/r.t")).tags.list()
    assert {tag["version"] for tag in tags.values()} == {ref.version for ref in refs}


@pytest.mark.parametrize("kind", ["cut after", "500 after", "cut before", "503 before"])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(s3, proxy, plan, kind):
    store = Store(s3)
    build(store, 1)
    proxy.follow(plan().aim("PUT", "_versions/", kind).aim("PUT", "_refs/", kind))
    ref = build(store, 2)
    assert proxy.suffered[kind] == 2
    # Version 1 is the empty table that the first builder made.
    assert rows_by_version(store) == {1: [], 2: [1], 3: [2]} and ref.version == 3


def test_a_commit_of_which_nothing_is_heard_is_looked_for(s3, proxy, plan):
    store = Store(s3)
    build(store, 1)
    # The first answer is lost, and then the server fails until the client gives up.
    proxy.follow(plan().aim("PUT", "_versions/", "cut after").aim("PUT", "_versions/", "503 before", times=8))
    ref = build(store, 2)
    assert proxy.suffered == {"cut after": 1, "503 before": 8}
    assert rows_by_version(store) == {1: [], 2: [1], 3: [2]} and ref.version == 3


def test_a_commit_that_never_arrives_is_told_in_one_line_and_leaves_the_table_as_it_was(s3, proxy, plan, monkeypatch):
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "2")
    store = Store(s3)
    build(store, 1)
    proxy.follow(plan().aim("PUT", "_versions/", "503 before", times=1000))
    with pytest.raises(UnreachableError, match=r"answers with an error \(503 Service Unavailable\); try again later"):
        build(store, 2)
    proxy.follow(plan())
    assert rows_by_version(store) == {1: [], 2: [1]}


def test_a_missing_file_is_not_committed(s3):
    store = Store(s3)
    first = build(store, 1)
    fragments = write_batches(store, "stages/r.t", [batch(2)], SCHEMA)
    (new,) = set(store.list("stages/r.t.lance/data/")) - {key for key in first_files(store)}
    store.objects.delete(new)
    with pytest.raises(StoreError, match="gone before its commit"):
        commit_fragments(store, "stages/r.t", SCHEMA, fragments, fingerprint="2" * 64)
    assert lance.dataset(store.table_uri("stages/r.t")).version == first.version


def first_files(store: Store) -> list[str]:
    files = [file.path for fragment in lance.dataset(store.table_uri("stages/r.t")).get_fragments() for file in fragment.data_files()]
    return [f"stages/r.t.lance/data/{path}" for path in files]


def test_a_missing_version_is_not_taken_for_a_dead_server_nor_the_reverse(s3, monkeypatch):
    ref = build(Store(s3), 1)
    with pytest.raises(StoreError, match="version 9 is not in s3://") as error:
        StoredTable(Store(s3), TableRef("stages/r.t", 9, 1, ref.fingerprint)).frame()
    assert not isinstance(error.value, UnreachableError)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "1")
    with pytest.raises(UnreachableError, match="http://127.0.0.1:9 can't be reached"):
        StoredTable(Store(s3), ref).frame()


def test_lancedb_opens_the_table_by_its_name(s3):
    store = Store(s3)
    ref = commit_fragments(store, "pets", SCHEMA, write_batches(store, "pets", [batch(3, 1, 2)], SCHEMA), fingerprint="a" * 64)
    table = lancedb.connect(s3).open_table("pets")
    table.checkout(ref.version)
    assert table.to_arrow()["x"].to_pylist() == [3, 1, 2]


@pytest.mark.parametrize("kind", ["cut after", "500 after", "503 before"])
def test_an_index_is_committed_once_though_answers_are_lost(s3, proxy, plan, kind):
    store, size = Store(s3), 8
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(2000 * size, np.float32)), size)
    rows = pa.record_batch({"sample_id": [str(row) for row in range(2000)], "embedding": values})
    commit_fragments(store, "pets", rows.schema, write_batches(store, "pets", [rows], rows.schema), fingerprint=named(1))
    proxy.follow(plan().aim("PUT", "_versions/", kind).aim("PUT", "_indices/", kind))
    found = write_version(store, "pets", rows.schema, [rows], named(2), index={"embedding": "l2"})
    assert proxy.suffered[kind] >= 2 and found.table.version == 4
    dataset = lance.dataset(store.table_uri("pets"), version=4)
    assert [one.num_rows_indexed for one in dataset.describe_indices()] == [2000]
    assert dataset.to_table(nearest={"column": "embedding", "q": values[7].values, "k": 1})["sample_id"].to_pylist() == ["7"]
    assert {key for key in found.files if "/_indices/" in key} == {key for key in store.list("pets.lance/_indices/")}


def test_numbers_of_snapshots_are_unique_though_answers_are_lost(s3, proxy, plan):
    proxy.follow(plan(seed=1, rate=0.3))
    ref = commit_fragments(Store(s3), "pets", SCHEMA, write_batches(Store(s3), "pets", [batch(1)], SCHEMA), fingerprint=named(1))

    def publish(number: int) -> int:
        table = {"name": "pets", "version": ref.version, "rows": 1, "fingerprint": ref.fingerprint, "digest": named(number), "columns": {}}
        manifest = {"name": "pets", "digest": named(number), "rows": 1, "trial": False, "splits": {"train": 1}, "table": table, "files": {}, "stages": []}
        return publish_manifest(Store(s3), manifest)["number"]

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(publish, range(4)))
    assert sorted(numbers) == [1, 2, 3, 4]
    assert {manifest["number"]: manifest["digest"] for manifest in list_manifests(Store(s3), "pets")} == {n: named(i) for i, n in enumerate(numbers)}
    proxy.follow(plan())  # the look that follows is Lance's own, which doesn't try again
    assert lance.dataset(f"{s3}/pets.lance").tags.list().keys() >= {"v1", "v2", "v3", "v4"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=4)
@given(seed=st.integers(0, 2**32), rate=st.sampled_from([0.1, 0.3]))
def test_whatever_the_network_does_nothing_is_lost_or_doubled(s3, proxy, plan, seed, rate):
    uri = f"{s3}/{seed}-{rate}"
    proxy.follow(plan(seed=seed, rate=rate))

    def stage(number: int) -> Record:
        store = Store(uri)
        fragments = [text for half in (0, 1) for text in write_batches(store, "stages/r.t", [batch(10 * number + half)], SCHEMA)]
        ref = commit_fragments(store, "stages/r.t", SCHEMA, fragments, fingerprint=named(number))
        return put_record(store, Record(ref.fingerprint, "t", "op", {}, ref, None, {}, {}), {})

    # Two builders of each of two stages at once, as two builds of one recipe would be.
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(stage, [1, 1, 2, 2]))
    proxy.follow(plan())
    assert records[0] == records[1] == read_record(Store(uri), named(1)) and records[2] == records[3]
    for number, record in ((1, records[0]), (2, records[2])):
        assert StoredTable(Store(uri), record.table).frame()["x"].to_list() == [10 * number, 10 * number + 1]
