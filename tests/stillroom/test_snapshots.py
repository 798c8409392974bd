"""Snapshots: opened by name from the manifest alone, read split by split, and told in one line when they aren't there."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stillroom import snapshots
from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field
from stillroom.images import decode, encode_png
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from storage.commits import commit_fragments, version_facts, write_batches
from storage.manifests import promote
from storage.publish import publish_manifest

SCHEMA = with_hashes(pa.schema([("sample_id", pa.string()), image_field(), label_field(["dark", "light"]), ("split", pa.string())]))


def publish(store: Path, name: str, splits: list[str], trial: bool = False) -> int:
    """Publishes a table with a row for each entry of `splits`, grey from dark to light; returns its number."""
    images = pa.array([encode_png(np.full((2, 2, 1), 10 * row, np.uint8)) for row in range(len(splits))], pa.binary())
    rows = pa.table([[f"{name}-{row}" for row in range(len(splits))], images, hashes(images), [row % 2 for row in range(len(splits))], splits], schema=SCHEMA)
    home = Store(store)
    digest = f"{len(splits):032x}"
    ref = commit_fragments(home, name, SCHEMA, write_batches(home, name, rows.to_batches(), SCHEMA), fingerprint=digest)
    table = {"name": name, "version": ref.version, "rows": ref.rows, "fingerprint": ref.fingerprint, "digest": digest, "columns": {}}
    counts = {split: splits.count(split) for split in dict.fromkeys(splits)}
    manifest = {"name": name, "digest": digest, "rows": ref.rows, "trial": trial, "splits": counts, "table": table, "stages": []}
    return publish_manifest(home, {**manifest, "files": version_facts(home, [ref], {})})["number"]


@pytest.fixture
def pets(store: Path) -> Path:
    publish(store, "pets", ["train"] * 3 + ["validation"] * 2 + ["test"])
    publish(store, "pets", ["train"] * 4 + ["test"])
    publish(store, "plants", ["train"], trial=True)
    promote(Store(store), "pets", 1, "the larger one")
    return store


def test_a_number_opens_that_snapshot_and_none_the_promoted_one(pets):
    assert snapshots.open("pets@2", pets).splits == {"train": 4, "test": 1}
    promoted = snapshots.open("pets", pets)
    assert (promoted.name, promoted.splits) == ("pets@1", {"train": 3, "validation": 2, "test": 1})
    assert repr(promoted) == "Snapshot(pets@1, train: 3, validation: 2, test: 1)"


def test_the_store_comes_from_the_environment(pets, monkeypatch):
    monkeypatch.setenv("STILLROOM_STORE", str(pets))
    assert snapshots.open("pets").name == "pets@1"


def test_opening_checks_manifest_and_sizes_and_every_byte_on_demand(pets):
    (data,) = [pets / key for key in snapshots.open("pets", pets).manifest["files"] if "/data/" in key]
    whole = data.read_bytes()
    data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert snapshots.open("pets", pets).splits["train"] == 3
    with pytest.raises(StoreError, match=r"pets@1: its file pets.lance/data/\S+ has other bytes than were written; `stillroom verify`"):
        snapshots.open("pets", pets, verify=True)
    data.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=f"has {len(whole) - 1:,} bytes, not {len(whole):,}"):
        snapshots.open("pets", pets)
    shutil.rmtree(pets / "pets.lance")
    with pytest.raises(StoreError, match="is missing, and . more files are wrong"):
        snapshots.open("pets", pets)
    assert snapshots.manifest_of("pets", pets)["splits"]["train"] == 3
    manifest = pets / "snapshots/pets/1.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 6', b'"rows": 9'))
    with pytest.raises(StoreError, match="'snapshots/pets/1.json': is damaged: its bytes don't match its checksum"):
        snapshots.open("pets", pets)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pet", "pet: no snapshot of that name in {store}; known: pets, plants"),
        ("pets@3", "pets@3: no such number; pets has @1, @2"),
        ("pets@two", "pets@two: no such number; pets has @1, @2"),
        ("plants", "plants: no snapshot of that name is promoted; open 'plants@1', or run `stillroom promote plants@1 --reason …`"),
    ],
)
def test_what_is_not_there_is_one_line(pets, name, told):
    with pytest.raises(InputError) as error:
        snapshots.open(name, pets)
    assert str(error.value) == told.format(store=pets)


def test_looking_into_no_store_makes_none(store):
    with pytest.raises(InputError, match="`stillroom build RECIPE` makes one"):
        snapshots.open("pets", store)
    assert snapshots.list_snapshots(store) == []
    assert not store.exists()


def test_the_list_tells_which_is_promoted_and_which_a_trial(pets):
    lines = snapshots.list_snapshots(pets)
    assert [(line["name"], line["number"], line["rows"], line["promoted"], line["trial"]) for line in lines] == [
        ("pets", 1, 6, True, False),
        ("pets", 2, 5, False, False),
        ("plants", 1, 1, False, True),
    ]


def test_a_split_is_read_in_bounded_batches_and_as_a_frame(pets):
    snapshot = snapshots.open("pets@1", pets)
    batches = list(snapshot.arrow("validation", ["sample_id", "image"], batch_size=1))
    assert [batch["sample_id"].to_pylist() for batch in batches] == [["pets-3"], ["pets-4"]]
    assert [int(decode(batch["image"][0].as_py())[0, 0, 0]) for batch in batches] == [30, 40]
    assert snapshot.polars("train").select("sample_id", "label").rows() == [("pets-0", 0), ("pets-1", 1), ("pets-2", 0)]
    assert snapshot.polars("test", ["label"]).rows() == [(1,)]
    assert snapshot.schema.equals(SCHEMA, check_metadata=True)
    with pytest.raises(InputError, match="pets@1: split 'tests': no such split; it has train, validation, test"):
        snapshot.table("tests")


def test_an_earlier_number_stays_as_it_was(pets):
    before = snapshots.open("pets@1", pets).polars("train")
    publish(pets, "pets", ["train"] * 9)
    assert snapshots.open("pets@1", pets).polars("train").equals(before)
    assert snapshots.open("pets@3", pets).splits == {"train": 9}


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "-1", "1.json"])
def test_a_number_that_only_looks_like_one_is_refused(store, number):
    publish(store, "grey", ["train"])
    with pytest.raises(InputError, match="no such number; grey has @1"):
        snapshots.open(f"grey@{number}", store)
