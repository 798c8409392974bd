"""Publishing: one table with all splits in a shuffled order, numbers that nobody shares, pointers that only grow."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from blake3 import blake3

from stillroom.errors import InputError
from stillroom.fields import image_field
from stillroom.records import Record, TableRef
from stillroom.snapshots import list_snapshots, promoted
from stillroom.stored import StoredTable, hashes, with_hashes
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.manifests import demote, list_manifests, promote
from storage.publish import publish_manifest, snapshot_order, write_snapshot
from storage.records import put_record

SCHEMA = with_hashes(pa.schema([("sample_id", pa.string()), image_field(), ("split", pa.string())]))


def put(store: Store, name: str, table: pa.Table) -> TableRef:
    ref = commit_fragments(
        store, name, table.schema, write_batches(store, name, table.to_batches(), table.schema), fingerprint=blake3(name.encode()).hexdigest()
    )
    put_record(store, Record(ref.fingerprint, name, "made.up", {}, ref, None, {}, {}), {})
    return ref


@pytest.fixture
def pets(store: Path) -> TableRef:
    ids = [f"{number:03}" for number in range(600)]
    images = pa.array([name.encode() for name in ids], pa.binary())
    return put(Store(store), "stages/pets.all", pa.table([ids, images, hashes(images), ["train", "test", "test"] * 200], schema=SCHEMA))


def of(ref: TableRef, split: str) -> TableRef:
    return TableRef(ref.name, ref.version, ref.rows, ref.fingerprint, split=split)


def manifest(table: TableRef, digest: str, **more: Any) -> dict[str, Any]:
    where = {"name": "pets", "version": table.version, "rows": 200, "fingerprint": table.fingerprint, "digest": digest, "columns": {}}
    return {"name": "pets", "digest": digest, "rows": 200, "trial": False, "splits": {"train": 200}, "table": where, "files": {}, "stages": []} | more


def test_a_snapshot_holds_every_row_of_its_splits_in_the_order_of_its_seed(store, pets):
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train")), ("validation", of(pets, "test"))], 7, "abc")
    found = lance.dataset(f"{store}/pets.lance", version=table.version).to_table()
    assert found["split"].to_pylist() == ["train"] * 200 + ["validation"] * 400
    assert [image.decode() for image in found["image"].to_pylist()] == found["sample_id"].to_pylist()
    train = found["sample_id"].to_pylist()[:200]
    assert sorted(train) == [f"{number:03}" for number in range(0, 600, 3)] != train
    again, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train"))], 8, "abd")
    assert lance.dataset(f"{store}/pets.lance", version=again.version).to_table()["sample_id"].to_pylist() != train


def test_a_rows_place_hangs_on_its_id_alone(store, pets):
    backwards = StoredTable(Store(store), pets).take(range(599, -1, -1))
    other = StoredTable(Store(store), put(Store(store), "stages/pets.backwards", backwards))
    table = StoredTable(Store(store), pets)
    by_place = [each.frame()["sample_id"][snapshot_order(each, 7, "train")].to_list() for each in (table, other)]
    assert by_place[0] == by_place[1]


def test_a_column_that_a_split_lacks_is_null_there(store, pets):
    extra = put(Store(store), "stages/pets.more", pa.table({"sample_id": ["x"], "width": pa.array([3], pa.int32())}))
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train")), ("test", extra)], 7, "abc")
    found = lance.dataset(f"{store}/pets.lance", version=table.version).to_table()
    assert found.slice(200).to_pylist() == [{"sample_id": "x", "image": None, "image_hash": None, "split": "test", "width": 3}]
    assert found["width"].null_count == 200


def test_publishing_at_the_same_time_gives_each_content_a_number_of_its_own(store, pets):
    home = Store(store)
    tables = [write_snapshot(str(store), "pets", [("train", of(pets, "train"))], seed, f"{seed:032}").table for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda number: publish_manifest(home, manifest(tables[number], f"digest {number}")), range(6)))
    assert sorted(each["number"] for each in made) == [1, 2, 3, 4, 5, 6]
    assert {each["number"]: each["digest"] for each in made} == {each["number"]: each["digest"] for each in list_manifests(home, "pets")}
    tags = lance.dataset(f"{store}/pets.lance").tags.list()
    assert {f"v{each['number']}": each["table"]["version"] for each in made} == {name: tag["version"] for name, tag in tags.items() if name.startswith("v")}


def test_equal_content_published_at_the_same_time_gets_one_number(store, pets):
    home = Store(store)
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train"))], 7, "abc")
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda _: publish_manifest(home, manifest(table, "the same")), range(12)))
    assert [each["number"] for each in made] == [1] * 12
    assert publish_manifest(home, manifest(table, "the same", trial=True))["number"] == 2


def test_the_same_rows_judged_otherwise_get_a_number_of_their_own(store, pets):
    home = Store(store)
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train"))], 7, "abc")

    def number(accuracy: float, seconds: float = 1.0, **more: Any) -> int:
        arm = {"arm": "candidate.hard", "rows": 200, "seeds": 5, "accuracy": accuracy, "low": 0.1, "high": 1.0, "seconds": seconds}
        return publish_manifest(home, manifest(table, "the same", proof={"arms": [arm], "differences": []}, **more))["number"]

    def judged(gain: float, stage: str) -> list[dict[str, Any]]:
        return [{"stage": stage, "sets": {}, "lines": [{"kind": "difference", "gain": gain}]}]

    assert [number(0.8), number(0.8, seconds=2.0), number(0.9), number(0.8)] == [1, 1, 2, 1]
    assert [number(0.8, judged=judged(0.1, "a")), number(0.8, judged=judged(0.1, "b")), number(0.8, judged=judged(0.2, "a"))] == [3, 3, 4]
    # Rows that nobody judged keep the first number, with what it says.
    assert publish_manifest(home, manifest(table, "the same"))["number"] == 1


def test_a_tag_that_a_crash_left_out_is_set_by_the_next(store, pets):
    home = Store(store)
    first, second = (write_snapshot(str(store), "pets", [("train", of(pets, "train"))], seed, f"{seed:032}").table for seed in (1, 2))
    publish_manifest(home, manifest(first, "one"))
    lance.dataset(f"{store}/pets.lance").tags.delete("v1")
    publish_manifest(home, manifest(second, "two"))
    tags = lance.dataset(f"{store}/pets.lance").tags.list()
    assert (tags["v1"]["version"], tags["v2"]["version"]) == (first.version, second.version)


def test_promotions_at_the_same_time_are_all_kept(store, pets):
    home = Store(store)
    tables = [write_snapshot(str(store), "pets", [("train", of(pets, "train"))], seed, f"{seed:032}").table for seed in range(2)]
    for number, table in enumerate(tables):
        publish_manifest(home, manifest(table, f"digest {number}"))
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda number: promote(home, "pets", number, "at once"), [1, 2, 1, 2]))
    assert sorted(pointer["k"] for pointer in made) == [1, 2, 3, 4]
    latest = promoted(home, "pets")
    assert latest == max(made, key=lambda pointer: pointer["k"])


def test_what_is_not_there_and_what_is_a_trial_are_not_promoted(store, pets):
    home = Store(store)
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train"))], 7, "abc")
    publish_manifest(home, manifest(table, "a part", trial=True))
    with pytest.raises(InputError, match="pets@2: no such snapshot"):
        promote(home, "pets", 2, "why not")
    with pytest.raises(InputError, match="pets@1: is a trial on a part of the data and is never promoted"):
        promote(home, "pets", 1, "why not")
    assert promoted(home, "pets") is None


def test_objects_of_other_names_are_nobodys(store, pets):
    home = Store(store)
    table, *_ = write_snapshot(str(store), "pets", [("train", of(pets, "train"))], 7, "abc")
    publish_manifest(home, manifest(table, "one"))
    for key in ("snapshots/pets/x.json", "snapshots/pets/01.json", "promoted/pets/-1.json", "promoted/pets/newest.json"):
        home.put(key, b"{}")
    assert promote(home, "pets", 1, "better")["k"] == 1
    assert [line["promoted"] for line in list_snapshots(home)] == [True]
    assert demote(home, "pets", "worse")["number"] is None
