"""Exports, read back with the libraries that they are for: whole or absent, equal to the bit, the same bytes every time."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.errors import InputError, StoreError
from stillroom.fields import label_names
from stillroom.sealed import unseal
from stillroom.snapshots import Snapshot
from stillroom.snapshots import open as open_snapshot
from stillroom.soft_labels import decode
from stillroom.stores import Store
from stillroom.views import check_contract, from_json, replay
from storage.export import export_snapshot, list_exports
from storage.shards import FORMS, member_key

SPLITS = {"train": 50, "validation": 7, "test": 0}


@pytest.fixture
def snapshot(store: Path, publish, samples) -> Snapshot:
    return publish(store, samples({"train": 50, "validation": 7}), splits=SPLITS)


def about(target: Path) -> dict[str, Any]:
    return unseal((target / "stillroom.json").read_bytes(), "stillroom.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples_in(tar: Path) -> dict[str, dict[str, bytes]]:
    """Samples of a tar by key, as WebDataset groups them: members that follow each other, up to the first dot of the base name."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as opened:
        last = None
        for member in opened:
            key, _, suffix = member.name.partition(".")
            assert key == last or key not in found, "the members of a sample follow each other"
            file = opened.extractfile(member)
            assert file is not None
            found.setdefault(key, {})[suffix] = file.read()
            last = key
    return found


def test_parquet_keeps_every_column_and_its_meaning(snapshot, tmp_path):
    done = export_snapshot(snapshot, tmp_path / "out", "parquet", rows_per_file=20)
    names = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "validation-00000-of-00001"]
    assert sorted(path.stem for path in (tmp_path / "out/data").iterdir()) == sorted(names)
    tables = [pq.read_table(tmp_path / f"out/data/{name}.parquet") for name in names]
    found = pa.concat_tables(tables)
    assert found.equals(snapshot.table().take(range(57)))
    assert label_names(found.schema) == ["cat", "dog", "Ölkäfer"]
    assert check_contract(found.schema.field("views")) == check_contract(snapshot.schema.field("views"))
    assert (done.splits, done.files, done.taken_over) == (SPLITS, 4, 0)


def test_stillroom_json_says_what_it_is(snapshot, tmp_path):
    export_snapshot(snapshot, tmp_path / "out", "webdataset", splits=["validation"])
    told = about(tmp_path / "out")
    assert {name: told[name] for name in ("snapshot", "digest", "as", "splits", "rows", "classes")} == {
        "snapshot": "pets@1",
        "digest": snapshot.manifest["digest"],
        "as": "webdataset",
        "splits": {"validation": 7},
        "rows": 7,
        "classes": ["cat", "dog", "Ölkäfer"],
    }
    assert [file["file"] for file in told["files"]] == ["data/validation-00000-of-00001.tar"]


@pytest.mark.parametrize("top_k", [None, 2])
def test_webdataset_has_a_member_a_field(store, publish, samples, tmp_path, top_k):
    classes = tuple(f"class {number}" for number in range(20 if top_k else 3))
    snapshot = publish(store, samples({"train": 50}, classes, top_k))
    export_snapshot(snapshot, tmp_path / "out", "webdataset", rows_per_file=30)
    found = {key: row for tar in sorted((tmp_path / "out/data").iterdir()) for key, row in samples_in(tar).items()}
    rows = snapshot.table().take(range(50))
    assert list(found) == rows["sample_id"].to_pylist()
    assert [row["png"] for row in found.values()] == rows["image"].to_pylist()
    assert [int(row["cls"]) for row in found.values()] == rows["label"].to_pylist()
    vectors = np.stack([np.load(io.BytesIO(row["embedding.npy"]), allow_pickle=False) for row in found.values()])
    assert np.array_equal(vectors, snapshot.table().vectors("embedding"))
    # Views and soft labels come back from the JSON by the type that stillroom.json names.
    lines = [json.loads(row["json"]) for row in found.values()]
    field = pa.ipc.read_schema(pa.py_buffer(b64decode(about(tmp_path / "out")["schema"]))).field("views")
    views = from_json([line["views"] for line in lines], field)
    assert views.equals(rows["views"].combine_chunks())
    assert np.array_equal(
        decode(views.flatten().field("soft_label"), len(classes)), decode(rows["views"].combine_chunks().flatten().field("soft_label"), len(classes))
    )
    pixels = np.zeros((100, 3, 4, 4), np.uint8)
    assert np.array_equal(replay(pixels, views.flatten(), check_contract(field)), pixels)
    assert [line["source"] for line in lines] == rows["source"].to_pylist()
    assert [bytes.fromhex(line["image_hash"]) for line in lines] == rows["image_hash"].to_pylist()


def test_datasets_reads_the_shards_too(snapshot, tmp_path):
    """A reader of WebDataset's convention that we didn't write."""
    import datasets

    export_snapshot(snapshot, tmp_path / "out", "webdataset", rows_per_file=20)
    rows = list(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True, cache_dir=str(tmp_path / "cache")))
    assert [row["__key__"] for row in rows] == snapshot.polars("train")["sample_id"].to_list()
    assert [row["cls"] for row in rows] == snapshot.polars("train")["label"].to_list()
    assert rows[0]["png"].size == (4, 4)
    assert from_json([rows[0]["json"]["views"]], snapshot.schema.field("views")).to_pylist() == snapshot.table("train").take([0])["views"].to_pylist()


def test_the_code_of_the_guide_reads_exports(store, publish, samples, tmp_path, monkeypatch):
    publish(store, samples({"train": 9}), "digits")
    for form, target in (("parquet", "digits-parquet"), ("webdataset", "digits-shards")):
        export_snapshot(open_snapshot("digits@1", store), tmp_path / target, form)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/guides/export.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(code, "export.md", "exec"), shown := {})
    stored = snapshot_views(open_snapshot("digits@1", store))
    assert shown["views"].equals(stored)
    assert np.array_equal(shown["probs"], decode(stored.flatten().field("soft_label"), 3))


def snapshot_views(snapshot: Snapshot) -> pa.Array:
    return snapshot.table().take(range(snapshot.table().rows), ["views"])["views"].combine_chunks()


def test_a_key_survives_dots_slashes_and_any_letter(store, publish, samples, tmp_path):
    ids = ["22.05", "a/b.c", "Ölkäfer 7", "50%", ".hidden", "../up"]
    rows = samples({"train": 6})
    publish(store, rows.set_column(0, "sample_id", pa.array(ids)))
    export_snapshot(open_snapshot("pets@1", store), tmp_path / "out", "webdataset")
    found = samples_in(tmp_path / "out/data/train-00000-of-00001.tar")
    assert list(found) == [member_key(name) for name in ids]
    assert list(found)[:2] == ["22%2E05", "a%2Fb%2Ec"]
    assert [json.loads(row["json"])["sample_id"] for row in found.values()] == ids


def test_what_is_null_has_no_member(store, publish, samples, tmp_path):
    rows = samples({"train": 2})
    for name in ("image", "image_hash", "label", "embedding", "embedding_hash", "views", "el2n"):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.concat_arrays([rows[name].combine_chunks()[:1], pa.nulls(1, field.type)]))
    export_snapshot(publish(store, rows), tmp_path / "out", "webdataset")
    full, empty = samples_in(tmp_path / "out/data/train-00000-of-00001.tar").values()
    assert set(full) == {"png", "cls", "embedding.npy", "json"}
    assert set(empty) == {"json"}
    assert json.loads(empty["json"])["views"] is None


@pytest.mark.parametrize("form", ["hf", "parquet"])
def test_datasets_opens_it_with_image_and_classes(snapshot, tmp_path, form, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    export_snapshot(snapshot, tmp_path / "out", form, rows_per_file=20)
    if form == "hf":
        held = datasets.load_from_disk(str(tmp_path / "out"))
    else:
        held = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
        assert held["train"].features["image"] == datasets.Value("binary")  # as every other reader of Parquet finds it
        held = held.cast_column("image", datasets.Image())
    assert {split: len(rows) for split, rows in held.items()} == {split: rows for split, rows in SPLITS.items() if rows or form == "hf"}
    features = held["train"].features
    assert features["image"] == datasets.Image()
    assert features["label"] == datasets.ClassLabel(names=["cat", "dog", "Ölkäfer"])
    assert features["embedding"] == datasets.List(datasets.Value("float32"), length=3)
    first = held["train"][0]
    assert first["image"].size == (4, 4)
    arrow = held["train"].with_format("arrow")[:]
    expected = snapshot.table("train").take(range(50))
    images = pa.chunked_array([chunk.field("bytes") for chunk in arrow["image"].chunks])
    assert images.to_pylist() == expected["image"].to_pylist()
    for name in set(expected.column_names) - {"image"}:
        assert arrow[name].combine_chunks().equals(expected[name].combine_chunks().cast(arrow[name].type)), name


def test_features_are_those_that_the_library_would_infer(snapshot):
    import datasets

    from storage.features import features_of, hub_schema

    made = datasets.Features.from_dict(features_of(snapshot.schema))
    assert made.arrow_schema.types == hub_schema(snapshot.schema).types
    plain = pa.schema([(f"c{number}", kind) for number, kind in enumerate(KINDS)])
    assert datasets.Features.from_dict(features_of(plain)) == datasets.Features.from_arrow_schema(plain)


KINDS = [
    *(pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.binary(16)),
    *(pa.date32(), pa.timestamp("us"), pa.timestamp("ms", "UTC"), pa.time64("us"), pa.duration("s"), pa.decimal128(10, 2), pa.null()),
    *(pa.list_(pa.string()), pa.list_(pa.float32(), 4), pa.struct([("a", pa.int32()), ("b", pa.list_(pa.struct([("c", pa.bool_())])))])),
]


@pytest.mark.parametrize("form", list(FORMS))
def test_two_exports_have_the_same_bytes(snapshot, tmp_path, form):
    for name in ("one", "two"):
        export_snapshot(snapshot, tmp_path / name, form, rows_per_file=20)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_memory_is_bounded_by_bytes_not_rows(store, publish, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.export.BATCH_BYTES", 4000)
    monkeypatch.setattr("storage.shards.GROUP_BYTES", 8000)
    snapshot = publish(store, samples({"train": 100}))
    row_bytes = snapshot.table().take(range(100)).nbytes / 100
    seen = [0]
    export_snapshot(snapshot, tmp_path / "out", "parquet", report=lambda done, total: seen.append(done))
    read = np.diff(seen)
    assert read[0] == 16  # what a row weighs is known after the first ones
    assert 1 <= read[1:-1].max() <= 5000 / row_bytes
    metadata = pq.ParquetFile(tmp_path / "out/data/train-00000-of-00001.parquet").metadata
    assert metadata.num_row_groups > 1


def test_an_export_that_is_there_is_left_as_it_is(snapshot, tmp_path):
    export_snapshot(snapshot, tmp_path / "out", "parquet")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = export_snapshot(snapshot, tmp_path / "out", "parquet")
    assert again.taken_over == again.files == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_nothing_else_is_overwritten(snapshot, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="mine: is there already; give another name"):
        export_snapshot(snapshot, tmp_path / "mine", "parquet")
    export_snapshot(snapshot, tmp_path / "out", "parquet")
    with pytest.raises(InputError, match="out: is an export of pets@1 already"):
        export_snapshot(snapshot, tmp_path / "out", "webdataset")
    next((tmp_path / "out/data").iterdir()).unlink()
    with pytest.raises(InputError, match="is this export, but its data/.* is damaged; remove it and export again"):
        export_snapshot(snapshot, tmp_path / "out", "parquet")


def test_an_empty_folder_is_filled(snapshot, tmp_path):
    (tmp_path / "out").mkdir()
    export_snapshot(snapshot, tmp_path / "out", "parquet")
    assert (tmp_path / "out/stillroom.json").exists()


def test_a_split_that_is_not_there_is_one_line(snapshot, tmp_path):
    with pytest.raises(InputError, match="pets@1: split 'trian': no such split; it has train, validation, test"):
        export_snapshot(snapshot, tmp_path / "out", "parquet", splits=["trian"])
    assert not (tmp_path / "out").exists()


def test_the_store_notes_its_exports(snapshot, store, tmp_path):
    for target in ("one", "two", "one"):
        export_snapshot(snapshot, tmp_path / target, "hf", splits=["train"])
    noted = list_exports(Store(store))
    assert sorted((note["snapshot"], note["as"], note["target"], note["rows"]) for note in noted) == [
        ("pets@1", "hf", str(tmp_path / "one"), 50),
        ("pets@1", "hf", str(tmp_path / "two"), 50),
    ]


def test_a_store_that_cannot_be_written_is_exported_with_a_note(snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "put_json", lambda *of: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    done = export_snapshot(snapshot, tmp_path / "out", "parquet")
    assert "doesn't know of this export" in done.notes[0]
    assert (tmp_path / "out/stillroom.json").exists()


def test_pictures_that_are_not_what_their_hashes_say_are_not_exported(store, publish, samples, tmp_path):
    rows = samples({"train": 3})
    wrong = pa.array([b"x", *rows["image"].to_pylist()[1:]], pa.binary())
    broken = publish(store, rows.set_column(1, rows.schema.field("image"), wrong))
    with pytest.raises(StoreError, match="pets@1: the image of sample 0000 is not what its hash says; `stillroom verify pets@1`"):
        export_snapshot(broken, tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_not_those_of_the_manifest_are_not_exported(store, publish, samples, tmp_path):
    broken = publish(store, samples({"train": 3}), digest="ab" * 32)
    with pytest.raises(StoreError, match="pets@1: holds other rows than its manifest says, nothing is exported"):
        export_snapshot(broken, tmp_path / "out", "webdataset", splits=["train"])
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from stillroom.snapshots import open as open_snapshot
from storage.export import export_snapshot
_, store, target, form, at = sys.argv
seen = []
def report(done, total):
    if done >= int(at):
        os.kill(os.getpid(), signal.SIGKILL)
export_snapshot(open_snapshot("pets@1", store), Path(target), form, rows_per_file=10, report=report)
"""


@pytest.mark.parametrize(("form", "at", "finished"), [("parquet", 25, 2), ("webdataset", 57, 5), ("hf", 5, 0)])
def test_a_killed_export_leaves_nothing_and_the_next_goes_on(snapshot, store, tmp_path, form, at, finished):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store), str(tmp_path / "out"), form, str(at)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = export_snapshot(snapshot, tmp_path / "out", form, rows_per_file=10)
    assert done.taken_over == finished
    export_snapshot(snapshot, tmp_path / "other", form, rows_per_file=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "store"]


def test_a_finished_file_that_was_damaged_meanwhile_is_written_again(snapshot, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 40:
            raise Stop

    with pytest.raises(Stop):
        export_snapshot(snapshot, tmp_path / "out", "parquet", rows_per_file=10, report=stop)
    first = next(tmp_path.glob(".out.stillroom-*/whole/data/train-00000-of-00005.parquet"))
    raw = bytearray(first.read_bytes())
    raw[100] ^= 1
    first.write_bytes(raw)
    done = export_snapshot(snapshot, tmp_path / "out", "parquet", rows_per_file=10)
    assert done.taken_over == 2
    export_snapshot(snapshot, tmp_path / "other", "parquet", rows_per_file=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_what_an_export_of_something_else_left_is_cleared(snapshot, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        export_snapshot(snapshot, tmp_path / "out", "parquet", report=stop)
    export_snapshot(snapshot, tmp_path / "out", "webdataset")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def test_a_crash_right_after_the_rename_leaves_the_export(snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.whole.shutil.rmtree", lambda *folders: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_snapshot(snapshot, tmp_path / "out", "parquet")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 3
    done = export_snapshot(snapshot, tmp_path / "out", "parquet")
    assert done.taken_over == done.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


def test_two_at_once_do_not_mix(snapshot, tmp_path):
    refused = []

    def again(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(InputError, match="is being written by another process") as error:
                export_snapshot(snapshot, tmp_path / "out", "parquet")
            refused.append(error)

    export_snapshot(snapshot, tmp_path / "out", "parquet", report=again)
    assert refused
    assert pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").num_rows == 50
