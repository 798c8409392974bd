"""forget: of a row nothing stays anywhere in the store, whatever dies on the way, and nothing takes it in again."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from flows.build import build_recipe
from flows.plan import make_plan
from stillroom.errors import InputError, StoreError
from stillroom.images import encode_png
from stillroom.records import read_record
from stillroom.snapshots import list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.commits import write_batches
from storage.export import export_snapshot
from storage.forget import forget
from storage.runs import begin_run, end_run
from storage.tombstones import read_tombstones
from storage.verify import verify

RECIPE = """
name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  clean: {op: filter.near_duplicates, from: split, max_distance: 2}
  teacher: {op: train.teacher, from: {samples: clean.train, check_on: clean.validation}, net: mlp, steps: 2}
  core: {op: prune.random, from: clean.train, keep: 50%}
publish:
  splits: {train: core, validation: clean.validation, test: clean.test}
"""
# Kills itself when it is about to change the store for the n-th time.
DYING = """
import os, signal, sys
from stillroom.stores import Store
from storage import sweep
from storage.forget import forget
left = [int(sys.argv[2])]
def dying(change):
    def changed(*args, **more):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*args, **more)
    return changed
Store.put, Store.create, sweep._remove = dying(Store.put), dying(Store.create), dying(sweep._remove)
forget(Store(sys.argv[1]), [sys.argv[3]])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, pets.yaml and a store with pets@1; copy.png is a copy of whiskers.png."""
    folder = tmp_path_factory.mktemp("built")
    for label, mean in (("cat", 90), ("dog", 150)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(12):
            (folder / "photos" / label / f"{label}-{number:02}.png").write_bytes(encode_png(picture(mean, number)))
    shutil.move(folder / "photos" / "cat" / "cat-00.png", folder / "photos" / "cat" / "whiskers.png")
    shutil.copy(folder / "photos" / "cat" / "whiskers.png", folder / "photos" / "cat" / "zz-copy.png")
    (folder / "pets.yaml").write_text(RECIPE)
    build_recipe(folder / "pets.yaml", folder / "store", workers=1)
    return folder


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of all that to change."""
    return Path(shutil.copytree(built, tmp_path / "home"))


@pytest.fixture
def little(publish, samples, store: Path) -> Store:
    """A store without stages: pets@1 with 0000 to 0005, whose 0003 was made of 0001, and birds@1 with other pictures."""
    table = samples({"train": 4, "test": 2})
    parents = [["0001"] if sample == "0003" else None for sample in table["sample_id"].to_pylist()]
    publish(store, table.append_column("parents", pa.array(parents, pa.list_(pa.string()))), rows_by_hand=True)
    others = samples({"train": 40}).slice(20)
    publish(store, others, "birds")
    return Store(store)


def picture(mean: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng([mean, seed]).normal(mean, 30, (12, 12, 1)), 0, 250).astype(np.uint8)


def whiskers(home: Path) -> tuple[str, bytes]:
    """Id and bytes of a picture."""
    from tasks.ingest._samples import content_id

    data = (home / "photos" / "cat" / "whiskers.png").read_bytes()
    return content_id(data), data


def traces_of(store: Path, *needles: bytes) -> list[str]:
    """Files with one of these bytes, and tables in which any value of any row of any version has them."""
    found = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]
    for uri in store.rglob("*.lance"):
        if (uri / "_versions").is_dir():
            for version in lance.dataset(uri).versions():
                for row in lance.dataset(uri, version=version["version"]).to_table().to_pylist():
                    values = repr(row).encode() + b"".join(value for value in row.values() if isinstance(value, bytes))
                    if any(needle in values for needle in needles):
                        found.append(f"{uri.name}@{version['version']}")
    return found


def test_nothing_of_a_row_stays_in_the_store(home):
    store, (sample, data) = home / "store", whiskers(home)
    needles = (sample.encode(), b"whiskers.png", b"zz-copy.png", data)
    leave_more_traces(store, sample, data)
    before = traces_of(store, *needles)
    assert {"pets.lance@2", "pets.raw.lance@2", "pets.raw.removed.lance@2", "pets.split.lance@2"} <= set(before)
    assert {"work/feed/unit.arrow", "runs/one.json", "snapshots/pets/1.html"} <= set(before)
    found = forget(Store(store), ["cat/whiskers.png"], reason="cat/whiskers.png asked")
    assert traces_of(store, *needles) == []
    assert found.receipts[0]["rows"] == 1 and found.receipts[0]["snapshots"] == ["pets@1"]
    assert found.receipts[0]["versions"] == 8  # raw and core with their removed rows, split, clean, its hashes, pets
    report = verify(Store(store))
    assert (report.sound, report.findings) == (True, [])


def leave_more_traces(store: Path, sample: str, data: bytes) -> None:
    """What builds that died and other people's tools leave: unfinished work, files of no version, a deletion vector, an index, a message."""
    table = pa.table({"sample_id": [sample], "image": [data]})
    write_batches(Store(store), "stages/pets.raw", table.to_batches(), table.schema)
    write_batches(Store(store), "stages/pets.gone", table.to_batches(), table.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    Store(store).put("work/feed/unit.arrow", sink.getvalue().to_pybytes())
    Store(store).put_json("runs/one.json", {"id": "one", "recipe": "pets", "started": "2026-01-01T00:00:00+00:00", "state": "Failed", "stage": "raw",
                                            "message": f"can't read /data/photos/cat/whiskers.png ({sample})", "command": "stillroom build", "fingerprints": {}})  # fmt: skip
    published = lance.dataset(store / "pets.lance")
    published.create_scalar_index("sample_id", "BTREE")
    published.delete(f"sample_id = '{sample}'")
    page = store / "snapshots" / "pets" / "1.html"
    page.write_bytes(page.read_bytes() + b"<!-- thumbnail -->" + data)


def test_its_snapshots_keep_their_manifests_and_say_why_they_have_no_table(home):
    store = Store(home / "store")
    manifest = store.read_json("snapshots/pets/1.json")
    forget(store, [whiskers(home)[0]], reason="request 17")
    assert store.read_json("snapshots/pets/1.json") == manifest
    assert [line["withdrawn"] for line in list_snapshots(store)] == [True]
    with pytest.raises(StoreError, match=r"pets@1: was withdrawn at .*forgotten: request 17; `stillroom build pets.yaml`"):
        open_snapshot("pets@1", store)
    assert not (home / "store" / "pets.lance").exists() and store.list("published/") == []


def test_the_next_build_leaves_it_out_and_trains_anew(home):
    store, (sample, data) = Store(home / "store"), whiskers(home)
    before = {stage.name: stage.prints.table for stage in make_plan(home / "pets.yaml", store).stages}
    seen = forget(store, [sample]).seen
    assert [(one.kind, one.what, one.fingerprint) for one in seen] == [("model", "pets@1: teacher", before["teacher"])]
    after = {stage.name: stage for stage in make_plan(home / "pets.yaml", store).stages}
    assert all(stage.runs and stage.prints.table != before[name] for name, stage in after.items())
    assert build_recipe(home / "pets.yaml", store.uri, workers=1).snapshot == "pets@2"
    raw = read_record(store, after["raw"].prints.table)
    assert raw is not None and raw.counts == {"planned": 25, "out": 23, "forgotten": 2, "dropped": 0, "rejected": 0, "merged": 0}
    assert traces_of(home / "store", sample.encode(), b"whiskers.png", b"zz-copy.png", data) == []
    assert verify(store).sound


def test_it_is_known_again_by_id_by_picture_and_by_where_its_stage_found_it(home):
    store, (sample, data) = Store(home / "store"), whiskers(home)
    forget(store, [sample])
    stones = read_tombstones(store)

    def forgotten(table: str, **row: object) -> bool:
        batch = pa.record_batch({name: pa.array([value], pa.binary() if name == "image" else pa.string()) for name, value in row.items()})
        return bool(stones.forgotten(batch, table)[0])

    assert forgotten("stages/other.raw", sample_id=sample, source="a.png", image=b"another")
    assert forgotten("stages/other.raw", sample_id="new", source="a.png", image=data)
    assert forgotten("stages/pets.raw", sample_id="new", source="cat/whiskers.png", image=b"another")
    assert not forgotten("stages/other.raw", sample_id="new", source="cat/whiskers.png", image=b"another")
    assert not forgotten("stages/pets.raw", sample_id="new", source="cat/cat-01.png", image=b"another")


def test_tombstones_name_nobody_and_two_stores_share_no_hash(home, tmp_path):
    twin, sample = Path(shutil.copytree(home / "store", tmp_path / "twin")), whiskers(home)[0]
    hashes = []
    for store in (home / "store", twin):
        forget(Store(store), [sample])
        hashes.append(set(Store(store).read_json("forgotten/1.json")["ids"]))
        receipt = Store(store).read_json("forgotten/receipts/1.json")
        assert set(receipt) == {"at", "reason", "rows", "versions", "snapshots", "files", "bytes", "tombstone"}
    assert hashes[0].isdisjoint(hashes[1])


def test_a_source_that_never_had_it_keeps_its_table(home):
    store = Store(home / "store")
    (home / "other.yaml").write_text("name: other\nstages:\n  raw: {op: ingest.digits}\n")
    before = make_plan(home / "other.yaml", store).stages[0].prints
    forget(store, [whiskers(home)[0]])
    assert make_plan(home / "other.yaml", store).stages[0].prints == before


def test_a_row_made_of_it_goes_too_and_other_snapshots_stay(little):
    bytes_of_others = open_snapshot("birds@1", little).table().take([0])
    found = forget(little, ["0001"])
    assert (found.receipts[0]["rows"], found.snapshots) == (2, ["pets@1"])
    assert open_snapshot("birds@1", little, verify=True).table().take([0]) == bytes_of_others
    assert verify(little).sound


def test_a_row_with_the_same_picture_goes_too(publish, samples, store):
    table = samples({"train": 4})
    publish(store, table)
    renamed = table.set_column(0, "sample_id", pa.array([f"other-{number}" for number in range(4)]))
    publish(store, renamed, "again")
    found = forget(Store(store), ["0002"])
    assert (found.receipts[0]["rows"], found.snapshots) == (2, ["again@1", "pets@1"])


@pytest.mark.parametrize("change", [0, 2, 5, 10, 20])
def test_a_crash_at_any_instant_is_finished_by_the_next_forget(little, change):
    folder = Path(little.uri)
    died = subprocess.run([sys.executable, "-c", DYING, little.uri, str(change), "0001"], check=False)
    assert died.returncode in (-signal.SIGKILL, 0)
    found = forget(little, [] if little.list("forgotten/pending/") else ["0001"])
    assert little.list("forgotten/pending/") == []
    assert traces_of(folder / "pets.lance", b"0001", b"a/1.05.png") == [] and not (folder / "pets.lance").exists()
    assert [line["withdrawn"] for line in list_snapshots(little)] == [False, True]
    assert read_tombstones(little).knows("0001") and read_tombstones(little).knows("0003")
    assert len(little.list("forgotten/receipts/")) >= 1 and (found.receipts or died.returncode == 0)
    assert verify(little).sound


def test_no_row_is_forgotten_while_a_build_is_at_work(little):
    run = begin_run(little, "pets", {"raw": "f"}, "stillroom build pets.yaml")
    with pytest.raises(StoreError, match=r"a build of 'pets' is at work \(process \d+ on .*\), and would write on; wait until it ends"):
        forget(little, ["0001"])
    end_run(little, run, "Completed")
    assert forget(little, ["0001"]).snapshots == ["pets@1"]


def test_a_dry_run_changes_nothing_and_says_the_same(little):
    before = little.sizes("")
    planned = forget(little, ["0001"], dry_run=True)
    assert little.sizes("") == before
    done = forget(little, ["0001"])
    same = ("rows", "versions", "snapshots", "files", "bytes")
    assert [planned.receipts[0][name] for name in same] == [done.receipts[0][name] for name in same]
    gone = sum(before.values()) - sum(size for key, size in little.sizes("").items() if key in before)
    assert done.receipts[0]["bytes"] == gone


@pytest.mark.parametrize("asked", ["0002", "a/2.05.png", "/data/pictures/a/2.05.png", "2.05.png"])
def test_a_sample_is_meant_by_id_source_or_path(little, asked):
    forget(little, [asked])
    assert read_tombstones(little).knows("0002")


def test_a_sample_is_meant_by_the_picture_itself(little, tmp_path):
    file = tmp_path / "found.png"
    file.write_bytes(open_snapshot("pets@1", little).table().take([2], ["image"])["image"][0].as_py())
    forget(little, [str(file)])
    assert read_tombstones(little).knows("0002")


def test_what_means_several_or_none_is_a_line_and_nothing_is_done(little):
    before = little.sizes("")
    with pytest.raises(InputError, match=r"^'000': is no sample of"):  # too short to be the beginning of an id
        forget(little, ["000"])
    with pytest.raises(InputError, match=r"^'05.png': is no sample"):
        forget(little, ["0001", "05.png"])
    assert little.sizes("") == before


def test_the_beginning_of_several_ids_is_a_line_with_all_of_them(publish, samples, store):
    table = samples({"train": 3})
    publish(store, table.set_column(0, "sample_id", pa.array(["abcd1", "abcd2", "ffff3"])))
    with pytest.raises(InputError, match=r"'abcd': could be any of 2 samples: abcd1 \(a/0.05.png\); abcd2 \(a/1.05.png\); give one or more of these ids"):
        forget(Store(store), ["abcd"])
    assert forget(Store(store), ["abcd1", "fff" + "f"]).receipts[0]["rows"] == 2


def test_who_was_forgotten_can_be_asked_for_again(little):
    forget(little, ["0001"])
    assert forget(little, ["0001"]).receipts == []


def test_exports_that_have_it_are_named(little, tmp_path):
    pets, birds = (open_snapshot(name, little) for name in ("pets@1", "birds@1"))
    export_snapshot(pets, tmp_path / "pets", "webdataset")
    export_snapshot(pets, tmp_path / "test", "webdataset", splits=["test"])
    export_snapshot(birds, tmp_path / "birds", "webdataset")
    seen = forget(little, ["0001"]).seen
    assert [(one.kind, one.what) for one in seen] == [("export", f"{tmp_path / 'pets'} (pets@1, webdataset)")]


def test_a_gate_s_examples_lose_their_names(publish, samples, store):
    gate = {"name": "leakage", "ok": True, "examples": ["0001 (also in test)", "0002 (also in test)"]}
    publish(store, samples({"train": 4}), gates=[gate])
    forget(Store(store), ["0001"])
    manifest = Store(store).read_json("snapshots/pets/1.json")
    assert manifest["gates"][0]["examples"] == ["(forgotten) (also in test)", "0002 (also in test)"]


def test_a_damaged_record_is_a_line_and_nothing_is_done(home):
    store = home / "store"
    record = next((store / "records").glob("*.json"))
    record.write_bytes(record.read_bytes().replace(b"table", b"tabel", 1))
    with pytest.raises(StoreError, match=rf"'records/{record.name}': is damaged.*can't be looked through; `stillroom verify`"):
        forget(Store(store), [whiskers(home)[0]])


def test_a_table_that_cant_be_read_counts_as_one_that_has_it(little):
    forget_first = next(path for path in Path(little.uri, "birds.lance", "data").iterdir())
    forget_first.write_bytes(b"")
    assert forget(little, ["0001"]).snapshots == ["birds@1", "pets@1"]
