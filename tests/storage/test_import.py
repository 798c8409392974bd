"""Imports: what was exported comes back in another store with the same digest and order, and nothing damaged does."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field, vector_field
from stillroom.sealed import seal, unseal
from stillroom.snapshots import Snapshot, list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import hash_field, hashes, open_table
from stillroom.stores import Store
from storage.export import export_snapshot
from storage.imports import import_snapshot
from storage.runs import list_runs
from storage.tombstones import bury
from storage.verify import verify
from storage.whole import file_digest

STAGE = {
    "name": "raw", "op": "ingest.digits", "shape": "source", "gives": "samples", "hidden": False, "fingerprint": "cd" * 32, "inputs": {},
    "table": {"name": "stages/pets.raw", "version": 3}, "removed": None,
}  # fmt: skip


@pytest.fixture
def snapshot(store: Path, publish, samples) -> Snapshot:
    return publish(store, samples({"test": 7, "train": 50}), splits={"train": 50, "validation": 0, "test": 7}, stages=[STAGE])


@pytest.fixture
def exported(snapshot: Snapshot, tmp_path: Path) -> Path:
    export_snapshot(snapshot, tmp_path / "out", "parquet", rows_per_file=20)
    return tmp_path / "out"


def reseal(folder: Path, name: str, change: Any) -> None:
    """Change a sealed file as somebody would who knows how."""
    value = unseal((folder / name).read_bytes(), name)
    change(value)
    (folder / name).write_bytes(seal(value))


def test_it_is_the_same_snapshot_elsewhere(snapshot, exported, tmp_path):
    done = import_snapshot(exported, Store(tmp_path / "other"))
    assert (done.snapshot, done.origin, done.digest, done.same) == ("pets@1", "pets@1", snapshot.manifest["digest"], False)
    found = open_snapshot("pets@1", tmp_path / "other", verify=True)
    assert found.splits == snapshot.splits
    assert found.table().take(range(57)).equals(snapshot.table().take(range(57)))
    assert found.schema.equals(snapshot.schema, check_metadata=True)
    for split in ("train", "test"):
        assert found.polars(split, ["sample_id"]).equals(snapshot.polars(split, ["sample_id"]))


def test_its_manifest_says_where_it_came_from(snapshot, exported, tmp_path):
    import_snapshot(exported, Store(tmp_path / "other"), command="stillroom import out")
    made, was = open_snapshot("pets@1", tmp_path / "other").manifest, snapshot.manifest
    assert made["imported"]["from"] == "pets@1"
    assert made["imported"]["created"] == was["created"]
    assert made["imported"]["table"]["digest"] == made["digest"] == was["digest"]
    assert made["recipe"] == was["recipe"]
    # The stages' tables stayed behind: no reader may take another build's for them.
    assert made["stages"] == [{**STAGE, "table": {"name": "stages/pets.raw", "version": 0}}]
    lance.write_dataset(pa.table({"sample_id": ["another build's"]}), tmp_path / "other/stages/pets.raw.lance")
    with pytest.raises(StoreError, match="version 0 is not in"):
        open_table(Store(tmp_path / "other"), made["stages"][0]["table"]).take([0])
    assert [(run["state"], run["command"]) for run in list_runs(Store(tmp_path / "other"))] == [("Completed", "stillroom import out")]


def test_a_second_import_adds_nothing(exported, tmp_path):
    other = Store(tmp_path / "other")
    import_snapshot(exported, other)
    again = import_snapshot(exported, other)
    assert (again.snapshot, again.same) == ("pets@1", True)
    assert len(list_snapshots(other)) == 1


def test_imports_at_once_make_one_snapshot(snapshot, exported, tmp_path):
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: import_snapshot(exported, Store(tmp_path / "other")), range(3)))
    assert [each.snapshot for each in done] == ["pets@1"] * 3
    assert [each.same for each in done].count(False) == 1
    assert open_snapshot("pets@1", tmp_path / "other", verify=True).table().take(range(57)).equals(snapshot.table().take(range(57)))


def test_it_takes_the_next_number_where_others_are(exported, publish, samples, tmp_path):
    publish(tmp_path / "other", samples({"train": 3}))
    assert import_snapshot(exported, Store(tmp_path / "other")).snapshot == "pets@2"
    assert open_snapshot("pets@1", tmp_path / "other").splits == {"train": 3}


def test_an_imported_snapshot_can_be_exported_with_the_same_bytes(exported, tmp_path):
    import_snapshot(exported, Store(tmp_path / "other"))
    export_snapshot(open_snapshot("pets@1", tmp_path / "other"), tmp_path / "again", "parquet", rows_per_file=20)
    names = sorted(path.name for path in (exported / "data").iterdir())
    assert [(exported / "data" / name).read_bytes() for name in names] == [(tmp_path / "again/data" / name).read_bytes() for name in names]


def test_the_report_comes_along(snapshot, store, tmp_path):
    export_snapshot(snapshot, tmp_path / "out", "parquet")
    import_snapshot(tmp_path / "out", Store(tmp_path / "other"))
    assert (tmp_path / "other/snapshots/pets/1.html").read_bytes() == (store / "snapshots/pets/1.html").read_bytes()


def change_a_row(folder: Path) -> None:
    path = folder / "data/train-00000-of-00003.parquet"
    table = pq.read_table(path)
    labels = pa.array([(label + 1) % 3 for label in table["label"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(3, table.schema.field("label"), labels), path)


def flip_a_bit(folder: Path) -> None:
    path = folder / "data/test-00000-of-00001.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES = [
    (change_a_row, "data/train-00000-of-00003.parquet is not the file that was exported"),
    (flip_a_bit, "data/test-00000-of-00001.parquet is not the file that was exported"),
    (lambda folder: (folder / "data/train-00001-of-00003.parquet").unlink(), "data/train-00001-of-00003.parquet is missing"),
    (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or damaged"),
    (lambda folder: (folder / "stillroom.json").unlink(), "is no export of stillroom: it has no stillroom.json"),
    (lambda folder: (folder / "stillroom.json").write_text("{}"), "its stillroom.json is damaged"),
    (lambda folder: reseal(folder, "stillroom.json", lambda about: about.update(format=7)), "is an export of format 7, and this stillroom reads 1"),
    (
        lambda folder: reseal(folder, "manifest.json", lambda manifest: manifest.update(name="../up")),
        "manifest.json isn't the manifest of a snapshot, by name",
    ),
    (lambda folder: reseal(folder, "manifest.json", lambda manifest: manifest.update(digest="ab" * 32)), "manifest.json is that of another snapshot"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_a_damaged_export_is_refused_in_one_line(exported, tmp_path, damage, said):
    damage(exported)
    with pytest.raises(InputError) as refused:
        import_snapshot(exported, Store(tmp_path / "other"))
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def replace_file(folder: Path, name: str, table: pa.Table) -> None:
    """Put another file in the place of one, and let stillroom.json vouch for it."""
    pq.write_table(table, folder / name)

    def vouch(about: dict[str, Any]) -> None:
        (entry,) = (file for file in about["files"] if file["file"] == name)
        entry.update(bytes=(folder / name).stat().st_size, blake3=file_digest(folder / name))

    reseal(folder, "stillroom.json", vouch)


def test_rows_are_judged_by_the_snapshots_digest_whatever_the_files_say(exported, tmp_path):
    name = "data/train-00001-of-00003.parquet"
    whole = pq.read_table(exported / name)
    cases = {
        r"its rows have digest \w+…, those of pets@1 have": whole.slice(1),
        r"the image of sample \w+ is not what its hash says": whole.set_column(1, whole.schema.field("image"), pa.array([b"x"] * 20, pa.binary())),
        r"has other columns than the snapshot": whole.drop_columns(["el2n"]),
    }
    for said, table in cases.items():
        replace_file(exported, name, table)
        with pytest.raises(InputError, match=said):
            import_snapshot(exported, Store(tmp_path / "other"))
    assert list_snapshots(tmp_path / "other") == []
    assert {run["state"] for run in list_runs(Store(tmp_path / "other"))} == {"Failed"}
    replace_file(exported, name, whole)
    assert import_snapshot(exported, Store(tmp_path / "other")).snapshot == "pets@1"


def test_a_part_and_other_forms_are_refused(snapshot, tmp_path):
    export_snapshot(snapshot, tmp_path / "part", "parquet", splits=["train"])
    with pytest.raises(InputError, match="holds train of train, validation, test; export it without --split"):
        import_snapshot(tmp_path / "part", Store(tmp_path / "other"))
    export_snapshot(snapshot, tmp_path / "tars", "webdataset")
    with pytest.raises(InputError, match="is an export --as webdataset, which doesn't keep everything; export pets@1 --as parquet"):
        import_snapshot(tmp_path / "tars", Store(tmp_path / "other"))


def test_what_was_withdrawn_does_not_come_back(exported, tmp_path):
    other = Store(tmp_path / "other")
    import_snapshot(exported, other)
    other.put_json("withdrawn/pets/1.json", {"reason": "a sample was forgotten", "at": "2026-11-25", "way_out": ""})
    with pytest.raises(InputError, match="holds what was withdrawn from .*other as pets@1: a sample was forgotten"):
        import_snapshot(exported, other)


@pytest.mark.parametrize("kind", ["ids", "sources", "contents"])
def test_what_was_forgotten_does_not_come_back(snapshot, exported, tmp_path, kind):
    row = snapshot.table().take([30]).to_pylist()[0]
    gone = {"ids": [row["sample_id"]], "sources": [("stages/pets.raw", row["source"])], "contents": [row["image_hash"]]}
    other = Store(tmp_path / "other")
    bury(other, **{name: values if name == kind else [] for name, values in gone.items()}, read_by=[], at="2026-11-25")
    with pytest.raises(InputError, match="holds 1 rows or more that .*other was told to forget"):
        import_snapshot(exported, other)
    assert list_snapshots(other) == []


def test_both_stores_are_sound_afterwards(exported, store, tmp_path):
    import_snapshot(exported, Store(tmp_path / "other"))
    assert verify(Store(tmp_path / "other")).findings == []
    assert [finding.key for finding in verify(Store(store)).findings] == [f"records/{STAGE['fingerprint']}.json"]  # the test made no stage


# Ids of any letters; every kind of column with nulls; up to three splits, some of them without rows.
IDS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=12, unique=True)
CLASSES = st.lists(st.text(max_size=4), min_size=1, max_size=5, unique=True)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    ids, classes = draw(IDS), draw(CLASSES)

    def column(values: st.SearchStrategy[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(draw(st.lists(st.none() | values, min_size=len(ids), max_size=len(ids))), kind)

    pictures, vectors = (
        column(st.binary(max_size=30), pa.binary()),
        column(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2), pa.list_(pa.float32(), 2)),
    )
    view = pa.struct([("crop_y", pa.int32()), ("flip", pa.bool_()), ("soft_label", pa.list_(pa.float16(), 3))])
    views = st.lists(
        st.fixed_dictionaries(
            {"crop_y": st.integers(0, 9), "flip": st.booleans(), "soft_label": st.lists(st.sampled_from([0.0, 0.5]), min_size=3, max_size=3)}
        ),
        max_size=3,
    )
    columns = {
        pa.field("sample_id", pa.string()): pa.array(ids),
        image_field(): pictures,
        hash_field("image"): hashes(pictures),
        label_field(classes): column(st.integers(0, len(classes) - 1), pa.int64()),
        pa.field("score", pa.float32()): column(st.floats(width=32), pa.float32()),
        pa.field("words", pa.list_(pa.string())): column(st.lists(st.text(max_size=3), max_size=2), pa.list_(pa.string())),
        vector_field("embedding", 2): vectors,
        hash_field("embedding"): hashes(vectors),
        pa.field("views", pa.list_(view), metadata={"stillroom.views": "{}"}): column(views, pa.list_(view)),
        pa.field("split", pa.string()): pa.array(
            sorted(draw(st.lists(st.sampled_from(["test", "train", "validation"]), min_size=len(ids), max_size=len(ids))))
        ),
    }
    return pa.table(list(columns.values()), schema=pa.schema(list(columns)))


@given(table=tables(), rows_per_file=st.integers(1, 5))
def test_any_snapshot_comes_back_equal(table, rows_per_file, publish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("roundtrip")
    was = publish(folder / "store", table)
    export_snapshot(was, folder / "out", "parquet", rows_per_file=rows_per_file)
    import_snapshot(folder / "out", Store(folder / "other"))
    found = open_snapshot("pets@1", folder / "other")
    assert found.manifest["digest"] == was.manifest["digest"]
    stored = found.table().take(range(table.num_rows))
    assert stored.schema.equals(table.schema, check_metadata=True)
    assert stored.drop_columns("score").equals(table.drop_columns("score"))
    assert [repr(value) for value in stored["score"].to_pylist()] == [repr(value) for value in table["score"].to_pylist()]  # NaN is not equal to itself
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("manifest.json", lambda value: value.update(name=None), r"manifest\.json isn't the manifest of a snapshot, by name"),
        ("manifest.json", lambda value: value.pop("stages"), r"manifest\.json isn't the manifest of a snapshot, by stages, which is missing"),
        ("stillroom.json", lambda value: value.update(files=[{"file": "../../secret", "bytes": 1, "blake3": "x"}]), r"its stillroom\.json is damaged"),
        ("stillroom.json", lambda value: value.update(schema="AAAA"), r"stillroom\.json has no schema that can be read"),
    ],
)
def test_an_export_of_another_shape_is_refused_though_it_was_sealed(exported, tmp_path, file, change, says):
    reseal(exported, file, change)
    with pytest.raises(InputError, match=says):
        import_snapshot(exported, Store(tmp_path / "other"))
    assert list_snapshots(tmp_path / "other") == []
