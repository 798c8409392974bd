"""forget: which rows are meant, what goes with them, and that a crash at any instant is finished by the next one."""

import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stillroom.errors import InputError, StoreError
from stillroom.snapshots import list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.export import export_snapshot
from storage.forget import forget
from storage.runs import begin_run, end_run
from storage.tombstones import read_tombstones
from storage.verify import verify

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


@pytest.fixture
def little(publish, samples, store: Path) -> Store:
    """A store without stages: pets@1 with 0000 to 0005, whose 0003 was made of 0001, and birds@1 with other pictures."""
    table = samples({"train": 4, "test": 2})
    parents = [["0001"] if sample == "0003" else None for sample in table["sample_id"].to_pylist()]
    publish(store, table.append_column("parents", pa.array(parents, pa.list_(pa.string()))), rows_by_hand=True)
    others = samples({"train": 40}).slice(20)
    publish(store, others, "birds")
    return Store(store)


def traces_of(folder: Path, *needles: bytes) -> list[str]:
    """Files with one of these bytes."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]


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
    assert traces_of(folder, b"a/1.05.png") == [] and not (folder / "pets.lance").exists()
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


def test_a_table_that_cant_be_read_counts_as_one_that_has_it(little):
    forget_first = next(path for path in Path(little.uri, "birds.lance", "data").iterdir())
    forget_first.write_bytes(b"")
    assert forget(little, ["0001"]).snapshots == ["birds@1", "pets@1"]
