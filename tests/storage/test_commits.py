"""Commits: whole or nothing, by one of several writers or by all, and never of missing files."""

import threading
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from stillroom.errors import StoreError
from stillroom.records import Record, TableRef, read_record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.records import put_record

SCHEMA = pa.schema([("sample_id", pa.string()), ("x", pa.int64())])


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([str(n) for n in numbers]), pa.array(numbers)], schema=SCHEMA)


def test_rows_are_visible_after_the_commit_only(store: Path):
    made = Store(store)
    fragments = [*write_batches(made, "t", [batch(1, 2)], SCHEMA), *write_batches(made, "t", [batch(3)], SCHEMA)]
    with pytest.raises(ValueError):
        lance.dataset(made.table_uri("t"))
    ref = commit_fragments(made, "t", SCHEMA, fragments, fingerprint="a" * 64)
    assert StoredTable(made, ref).frame()["x"].to_list() == [1, 2, 3]


def test_eight_builders_at_once_lose_nothing(store: Path):
    made = Store(store)
    refs: list[TableRef] = []

    def build(number: int) -> None:
        refs.append(commit_fragments(made, "t", SCHEMA, write_batches(made, "t", [batch(number)], SCHEMA), fingerprint=f"{number:064d}"))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(StoredTable(made, ref).frame()["x"].item() for ref in refs) == list(range(8))
    assert len({ref.version for ref in refs}) == 8


def test_a_missing_file_is_not_committed(store: Path):
    made = Store(store)
    first = commit_fragments(made, "t", SCHEMA, write_batches(made, "t", [batch(1)], SCHEMA), fingerprint="a" * 64)
    fragments = write_batches(made, "t", [batch(2)], SCHEMA)
    newest = max((store / "t.lance" / "data").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    newest.unlink()
    with pytest.raises(StoreError, match="gone before its commit"):
        commit_fragments(made, "t", SCHEMA, fragments, fingerprint="b" * 64)
    assert StoredTable(made, first).frame()["x"].to_list() == [1]
    assert lance.dataset(made.table_uri("t")).version == first.version


def test_an_exception_in_the_rows_comes_out_as_it_was(store: Path):
    def broken():
        yield batch(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_batches(Store(store), "t", broken(), SCHEMA)


def test_an_empty_table_is_a_table(store: Path):
    made = Store(store)
    ref = commit_fragments(made, "t", SCHEMA, [], fingerprint="a" * 64)
    assert StoredTable(made, ref).rows == 0 and StoredTable(made, ref).schema == SCHEMA


def test_the_second_record_of_a_fingerprint_yields_to_the_first(store: Path):
    made = Store(store)
    records = [Record("f" * 64, "s", "op", {}, TableRef("t", version, 1, "f" * 64), None, {}, {}) for version in (1, 2)]
    assert put_record(made, records[0], {}) == records[0]
    assert put_record(made, records[1], {}) == records[0] == read_record(made, "f" * 64)
