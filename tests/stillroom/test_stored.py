"""Stored tables: heavy values found where they are, splits as views, faults in one line."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field, vector_field
from stillroom.records import Record, TableRef
from stillroom.stored import AT_TYPE, StoredTable, at_field, hashes, logical_schema, open_table, physical_schema, with_hashes
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.records import put_record

IMAGE, VECTOR = image_field(), vector_field("embedding", 2)
SCHEMA = pa.schema([("sample_id", pa.string()), IMAGE, VECTOR, label_field(["cat", "dog"]), ("split", pa.string())])


def put(store: Path, name: str, table: pa.Table) -> TableRef:
    """Writes a table as it is, in two fragments, with a record by which others find its heavy values."""
    home, fingerprint = Store(store), blake3(name.encode()).hexdigest()
    half = table.num_rows // 2
    fragments = [text for part in (table.slice(0, half), table.slice(half)) for text in write_batches(home, name, part.to_batches(), table.schema)]
    ref = commit_fragments(home, name, table.schema, fragments, fingerprint=fingerprint)
    put_record(home, Record(fingerprint, name, "made.up", {}, ref, None, {}, {}), {})
    return ref


def stored(schema: pa.Schema, **columns: list) -> pa.Table:
    """Rows with the hashes of their heavy values."""
    arrays = {field.name: pa.array(columns[field.name], field.type) for field in schema if field.name in columns}
    whole = with_hashes(schema)
    return pa.table([hashes(arrays[field.name.removesuffix("_hash")]) if field.name.endswith("_hash") else arrays[field.name] for field in whole], schema=whole)


@pytest.fixture
def cats(store: Path) -> TableRef:
    return put(
        store,
        "stages/pets.cats",
        stored(
            SCHEMA,
            sample_id=["a", "b", "c", "d", "e"],
            image=[b"A", b"B", None, b"D", b"E"],
            embedding=[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
            label=[0, 1, 0, None, 1],
            split=["train", "test", "train", None, "train"],
        ),
    )


@pytest.fixture
def mixed(store: Path, cats: TableRef) -> TableRef:
    """A table whose images lie in two other tables, in no order, and in one row nowhere."""
    dogs = put(store, "stages/pets.dogs", stored(pa.schema([("sample_id", pa.string()), IMAGE]), sample_id=["x", "y"], image=[b"X", b"Y"]))
    at = [(cats, 4), (dogs, 1), None, (cats, 0), (dogs, 0)]
    places = [place and {"origin": f"{place[0].name}/{place[0].fingerprint}", "row": place[1]} for place in at]
    schema = pa.schema([("sample_id", pa.string()), at_field(IMAGE), ("split", pa.string())])
    return put(
        store, "stages/pets.mixed", pa.table([["e", "y", "-", "a", "x"], pa.array(places, AT_TYPE), ["train", "test", "train", "test", "train"]], schema=schema)
    )


# Schemas


def test_a_stored_schema_reads_as_the_logical_one():
    whole = with_hashes(SCHEMA)
    assert whole.names == ["sample_id", "image", "image_hash", "embedding", "embedding_hash", "label", "split"]
    carried = physical_schema(whole, ["embedding"])
    assert carried.names == ["sample_id", "image_at", "image_hash", "embedding", "embedding_hash", "label", "split"]
    assert logical_schema(carried).equals(whole, check_metadata=True)
    assert with_hashes(whole) == whole


@given(st.lists(st.one_of(st.none(), st.binary(max_size=4)), max_size=6))
def test_hashes_are_of_the_bytes_and_null_for_null(values):
    expected = [None if value is None else blake3(value).digest(length=16) for value in values]
    assert hashes(pa.array([b"before", *values], pa.binary())[1:]).to_pylist() == expected


def test_vectors_are_hashed_by_their_bytes():
    vectors = pa.array([[9, 9], None, [1, 2]], pa.list_(pa.float32(), 2))[1:]
    assert hashes(vectors).to_pylist() == [None, blake3(np.array([1, 2], "<f4").tobytes()).digest(length=16)]


# Reading


def test_rows_come_in_the_order_asked_for(store, cats):
    table = StoredTable(Store(store), cats)
    found = table.take([3, 0, 3], ["sample_id", "image", "label"])
    assert found.to_pylist() == [
        {"sample_id": "d", "image": b"D", "label": None},
        {"sample_id": "a", "image": b"A", "label": 0},
        {"sample_id": "d", "image": b"D", "label": None},
    ]
    assert found.schema.equals(pa.schema([table.schema.field(name) for name in found.schema.names]), check_metadata=True)
    assert table.take([], ["image", "label"]).num_rows == 0


def test_heavy_values_are_found_in_the_tables_that_hold_them(store, mixed):
    table = StoredTable(Store(store), mixed)
    assert table.schema.names == ["sample_id", "image", "split"]
    assert table.take(range(5))["image"].to_pylist() == [b"E", b"Y", None, b"A", b"X"]
    assert table.take([4, 2, 1], ["image"])["image"].to_pylist() == [b"X", None, b"Y"]
    assert [value for batch in table.scan(["image"], batch_size=2) for value in batch["image"].to_pylist()] == [b"E", b"Y", None, b"A", b"X"]


@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_any_choice_of_rows_gets_its_own_values(tmp_path_factory, rows):
    store = tmp_path_factory.getbasetemp() / "any-choice"
    if not store.exists():
        _mixed_into(store)
    table = StoredTable(Store(store), TableRef("stages/pets.mixed", 2, 5, ""))
    assert table.take(rows, ["image"])["image"].to_pylist() == [[b"E", b"Y", None, b"A", b"X"][row] for row in rows]


def _mixed_into(store: Path) -> None:
    images = pa.schema([("sample_id", pa.string()), IMAGE])
    cats = put(store, "stages/pets.cats", stored(images, sample_id=["a", "e"], image=[b"A", b"E"]))
    dogs = put(store, "stages/pets.dogs", stored(images, sample_id=["x", "y"], image=[b"X", b"Y"]))
    places = [place and {"origin": f"{place[0].name}/{place[0].fingerprint}", "row": place[1]} for place in [(cats, 1), (dogs, 1), None, (cats, 0), (dogs, 0)]]
    schema = pa.schema([("sample_id", pa.string()), at_field(IMAGE)])
    assert put(store, "stages/pets.mixed", pa.table([["e", "y", "-", "a", "x"], pa.array(places, AT_TYPE)], schema=schema)).version == 2


def test_a_split_is_a_view_of_its_rows_in_their_order(store, cats, mixed):
    train = StoredTable(Store(store), TableRef(cats.name, cats.version, cats.rows, cats.fingerprint, split="train"))
    assert (train.rows, train.positions.tolist()) == (3, [0, 2, 4])
    assert train.take([2, 0], ["sample_id", "image"]).to_pylist() == [{"sample_id": "e", "image": b"E"}, {"sample_id": "a", "image": b"A"}]
    assert train.frame()["sample_id"].to_list() == ["a", "c", "e"]
    assert train.vectors("embedding").tolist() == [[0, 1], [4, 5], [8, 9]]
    carried = StoredTable(Store(store), TableRef(mixed.name, mixed.version, mixed.rows, mixed.fingerprint, split="test"))
    assert carried.take([0, 1], ["image"])["image"].to_pylist() == [b"Y", b"A"]
    nothing = StoredTable(Store(store), TableRef(cats.name, cats.version, cats.rows, cats.fingerprint, split="validation"))
    assert (nothing.rows, list(nothing.scan()), nothing.vectors("embedding").shape, nothing.frame().height) == (0, [], (0, 2), 0)


def test_a_manifests_entry_opens_without_counts(store, cats):
    assert open_table(Store(store), {"name": cats.name, "version": cats.version}).rows == 5


def test_a_table_travels_to_another_process_unopened(store, cats):
    table = StoredTable(Store(store), cats)
    table.take([0])
    again = pickle.loads(pickle.dumps(table))
    assert again.take([1], ["image"])["image"].to_pylist() == [b"B"]


# Faults


def test_a_missing_version_is_one_line(store, cats):
    with pytest.raises(StoreError) as error:
        StoredTable(Store(store), TableRef(cats.name, 99, 5, cats.fingerprint)).take([0])
    assert str(error.value) == f"table 'stages/pets.cats': version 99 is not in {store}; `stillroom build` makes it again"


def test_a_row_without_a_vector_is_told_and_not_another_rows(store):
    ref = put(store, "stages/pets.holes", stored(pa.schema([("sample_id", pa.string()), VECTOR]), sample_id=["a", "b", "c"], embedding=[[0, 1], None, [4, 5]]))
    with pytest.raises(InputError, match=r"column 'embedding': has no vector in 1 of rows 0 to 2 of table 'stages/pets.holes'"):
        StoredTable(Store(store), ref).vectors("embedding")


def test_a_forked_process_is_told_at_once(store, cats):
    table = StoredTable(Store(store), cats)
    table.take([0])
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            StoredTable(Store(store), cats).take([0])
            told = "it read"
        except StoreError as error:
            told = str(error)
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as told_by_child:
        assert b"was read before this process was forked, and Lance isn't fork-safe; use `snapshot.loader(" in told_by_child.read()
