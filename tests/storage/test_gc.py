"""gc: what kept snapshots need stays, everything else goes, and a crash or a build at any instant changes neither."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.build import build_recipe
from stillroom.errors import InputError, StoreError
from stillroom.records import Record, read_record
from stillroom.snapshots import list_snapshots, manifest_of
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage import manifests, sweep
from storage.alive import this_process
from storage.commits import commit_fragments, version_facts, write_batches
from storage.gc import Policy, gc
from storage.records import put_record
from storage.runs import begin_run, end_run, note_run
from storage.verify import verify

RECIPE = """
name: mini
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  looks: {op: score.embed, from: split.train, side_px: 8, channels: 1}
  core: {op: prune.random, from: looks, keep: 10%}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""
CHANGES: dict[str, list[str]] = {"mini@1": [], "mini@2": ["core.keep=20%"], "mini@3": ["split.seed=3"]}
X = pa.schema([("sample_id", pa.string()), ("x", pa.int64())])


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "mini.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def made(recipe_file: Path) -> Path:
    """A store with three snapshots, of which the second shares all but one stage with the first."""
    for snapshot, overrides in CHANGES.items():
        assert build_recipe(recipe_file, recipe_file.parent / "store", overrides, workers=1).snapshot == snapshot
    return recipe_file.parent / "store"


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(made, tmp_path / "mine"))


def size(store: Store | Path) -> int:
    """Bytes on disk, of files that no listing of objects shows as well."""
    root = store if isinstance(store, Path) else store.local
    assert root is not None
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def write_left_overs(store: Store) -> None:
    """What builds that were killed leave (at a write, between commit and record, at the write of an object, in a lease), and what other hands do."""
    assert store.local is not None
    for table in ("mini", "stages/mini.core", "stages/mini.gone"):
        write_batches(store, table, [pa.record_batch([["a"], [1]], schema=X)], X)
    commit_fragments(store, "stages/mini.gone", X, write_batches(store, "stages/mini.gone", [pa.record_batch([["a"], [1]], schema=X)], X), fingerprint="e" * 64)
    (store.local / "records" / f"{'e' * 64}.json#7").write_bytes(b"{")
    store.put_json(f"records/{'e' * 64}.leaves", {"leaves": {}})
    store.put_json(f"work/{'e' * 64}/0-1.json", {"files": {}})
    dead = {**this_process(), "pid": 2**22 + 1}
    store.put_json("leases/abc/4.json", {"holder": dead, "beat": "beats/77", "token": "t"})
    store.put("beats/77", b"1")
    table = lancedb.connect(store.uri).open_table("mini")
    table.delete("label = 3")
    table.to_lance().optimize.compact_files()


# What stays and what goes


def test_without_a_policy_only_left_overs_go(mine):
    before = set(mine.sizes(""))
    write_left_overs(mine)
    planned = gc(mine, dry_run=True)
    listed = set(mine.sizes(""))
    report = gc(mine)
    assert report.removed == planned.removed and (report.kept, report.dropped) == (list(CHANGES), [])
    assert set(mine.sizes("")) == before and listed > before
    assert report.bytes_removed == sum(removal.bytes for removal in report.removed) > 0
    assert (verify(mine).sound, verify(mine).findings) == (True, [])
    assert gc(mine).removed == []
    assert not (mine.local or Path()).joinpath("stages/mini.gone.lance").exists()


def test_the_disk_returns_to_what_the_kept_snapshot_needs(mine, recipe_file, tmp_path):
    write_left_overs(mine)
    gc(mine, Policy(keep_last=1))
    build_recipe(recipe_file, tmp_path / "fresh", CHANGES["mini@3"], workers=1)
    assert size(mine) == pytest.approx(size(tmp_path / "fresh"), rel=0.05)
    assert (verify(mine).sound, verify(mine).findings) == (True, [])


def test_a_dropped_snapshot_keeps_its_manifest_and_says_why_it_is_refused(mine):
    report = gc(mine, Policy(keep_last=1, named=frozenset({"mini@1"})))
    assert (report.kept, report.dropped) == (["mini@1", "mini@3"], ["mini@2"])
    with pytest.raises(StoreError, match=r"mini@2: was withdrawn at .*: gc kept the last 1, what is promoted, what was named; `stillroom snapshots`"):
        open_snapshot("mini@2", mine)
    assert manifest_of("mini@2", mine)["rows"] and [line["withdrawn"] for line in list_snapshots(mine)] == [False, True, False]
    for snapshot in report.kept:
        assert open_snapshot(snapshot, mine, verify=True).table("train").frame().height
    assert set(lancedb.connect(mine.uri).open_table("mini").tags.list()) >= {"v1", "v3"}
    with pytest.raises(InputError, match="mini@2: was withdrawn"):
        manifests.promote(mine, "mini", 2, "why not")


def test_origins_and_scores_of_kept_stages_stay(mine):
    gc(mine, Policy(keep_last=1))
    for stage in manifest_of("mini@3", mine)["stages"]:
        record = read_record(mine, stage["fingerprint"])
        assert record is not None
        table = StoredTable(mine, record.table)
        heavy = [name for name in ("image", "embedding") if name in table.schema.names]
        assert table.take([0, table.rows - 1], ["sample_id", *heavy]).num_rows == 2


def test_a_note_of_what_the_next_build_may_take_over_goes_with_what_it_names(mine):
    before = len(mine.list("latest/"))
    gc(mine, Policy(keep_last=1))
    notes = [mine.read_json(key) for key in mine.list("latest/")]
    named = [note["fingerprint"] for note in notes] + [note["input"]["fingerprint"] for note in notes if note["input"]]
    assert all(read_record(mine, fingerprint) for fingerprint in named) and 0 < len(notes) < before


def test_a_kept_snapshot_is_built_from_what_is_there_and_a_dropped_one_gets_a_new_number(mine, recipe_file):
    gc(mine, Policy(keep_last=1))
    assert build_recipe(recipe_file, mine.uri, CHANGES["mini@3"], workers=1).reused_all
    again = build_recipe(recipe_file, mine.uri, CHANGES["mini@1"], workers=1)
    states = {line["name"]: line["state"] for line in again.stages}
    assert (again.snapshot, states["raw"], states["split"]) == ("mini@4", "Reused", "Built")
    assert manifest_of("mini@4", mine)["digest"] == manifest_of("mini@1", mine)["digest"]
    assert verify(mine).sound and "v1" not in lancedb.connect(mine.uri).open_table("mini").tags.list()


def test_unfinished_work_of_the_latest_run_is_taken_over(mine):
    fingerprint, left = "d" * 64, write_batches(mine, "stages/mini.core", [pa.record_batch([["a"], [1]], schema=X)], X)
    (file,) = [f"stages/mini.core.lance/data/{file['path']}" for file in json.loads(left[0])["files"]]
    run = begin_run(mine, "mini", {"core": fingerprint}, "stillroom build mini.yaml")
    mine.put_json(f"work/{fingerprint}/0-1.json", {"files": {file: [1, ""]}})
    end_run(mine, run, "Failed")
    gc(mine)
    assert mine.read(f"work/{fingerprint}/0-1.json") and mine.read(file)
    gc(mine, Policy(newer_than=datetime.now(UTC) + timedelta(hours=1)))
    assert not mine.list("work/") and mine.read(file) is None


# Crashes


class Killed(BaseException):
    """As a process ends that gets no word in any more."""


def test_a_crash_at_any_deletion_leaves_a_store_that_verifies_and_that_the_next_gc_finishes(mine, monkeypatch):
    write_left_overs(mine)
    policy = Policy(keep_last=1)
    whole = Store(shutil.copytree(mine.uri, f"{mine.uri}-whole"))
    gc(whole, policy)
    remove, left = sweep._remove, 0

    def removes_some(store, keys):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        remove(store, keys)

    monkeypatch.setattr(sweep, "_remove", removes_some)
    crashes = 0
    while True:
        left = 3
        try:
            gc(mine, policy)
            break
        except Killed:
            crashes += 1
        report = verify(mine, narrow=False)
        # The version that somebody else made of the table is foreign until it is gone.
        assert [finding.key for finding in report.findings if finding.is_fault and "mini.lance/_versions" not in finding.key] == []
        assert open_snapshot("mini@3", mine).table("test").frame().height
    assert crashes > 20 and list_keys(mine) == list_keys(whole)


def list_keys(store: Store) -> set[str]:
    return {key for key in store.sizes("") if not key.startswith(("leases/", "beats/"))}


# Builds that run


def test_nothing_goes_while_a_build_has_not_said_what_it_needs(mine):
    write_left_overs(mine)
    run = begin_run(mine, "mini", {}, "stillroom build mini.yaml")
    report = gc(mine, Policy(keep_last=1))
    assert (report.removed, report.dropped) == ([], []) and "hasn't said yet what it needs" in report.note
    note_run(mine, run, fingerprints={"raw": "c" * 64})
    assert gc(mine, Policy(keep_last=1)).dropped == ["mini@1", "mini@2"]
    end_run(mine, run, "Completed")


def test_what_a_running_build_wrote_or_counts_on_stays(mine):
    old = write_batches(mine, "stages/mini.core", [pa.record_batch([["a"], [1]], schema=X)], X)
    for path in (mine.local or Path()).rglob("*"):
        os.utime(path, (1e9, 1e9))  # long ago
    counted_on = {stage["name"]: stage["fingerprint"] for stage in manifest_of("mini@2", mine)["stages"]}
    run = begin_run(mine, "mini", counted_on, "stillroom build mini.yaml")
    new = write_batches(mine, "stages/mini.core", [pa.record_batch([["a"], [1]], schema=X)], X)
    commit_fragments(mine, "stages/mini.late", X, write_batches(mine, "stages/mini.late", [], X), fingerprint="b" * 64)
    report = gc(mine, Policy(keep_last=1))
    assert report.dropped == ["mini@1", "mini@2"]
    files = {key.rpartition("/")[2] for key in mine.sizes("")}
    paths = {name: {file["path"] for text in texts for file in json.loads(text)["files"]} for name, texts in {"old": old, "new": new}.items()}
    assert paths["new"] <= files and not paths["old"] & files
    for fingerprint in counted_on.values():
        assert read_record(mine, fingerprint)
    # It goes on: commits on the newest version, and its tables are there.
    late = commit_fragments(mine, "stages/mini.core", X, new, fingerprint="a" * 64)
    assert StoredTable(mine, late).frame()["x"].to_list() == [1] and StoredTable(mine, late).dataset.version == late.version
    end_run(mine, run, "Completed")
    gc(mine, Policy(keep_last=1))
    assert (verify(mine).sound, verify(mine).findings) == (True, []) and not mine.list("stages/mini.late.lance/")


def test_gc_beside_a_build_of_another_process(mine, recipe_file, tmp_path):
    build = textwrap.dedent(f"""
        from flows.build import build_recipe
        if __name__ == "__main__":
            print(build_recipe({str(recipe_file)!r}, {mine.uri!r}, ["core.keep=40%", "split.seed=9"], workers=1).snapshot)
    """)
    (tmp_path / "build.py").write_text(build)
    process = subprocess.Popen([sys.executable, str(tmp_path / "build.py")], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    while process.poll() is None:
        gc(mine, Policy(keep_last=1))
    assert process.stdout is not None and "mini@4" in process.stdout.read()
    assert verify(mine).sound and open_snapshot("mini@4", mine, verify=True).table("train").frame().height
    gc(mine, Policy(keep_last=1))
    assert (verify(mine).sound, verify(mine).findings) == (True, [])
    assert gc(mine).kept == ["mini@4"]


# Policies


@pytest.fixture
def pets(publish: Callable[..., object], tmp_path: Path) -> Store:
    """pets@1 to pets@5, a day apart up to today; the third is a trial. No stages."""
    store = Store(tmp_path / "pets")
    for number in range(1, 6):
        table = pa.table({"sample_id": ["a"], "label": [number], "split": ["train"]})
        publish(store.uri, table, trial=number == 3)
        key = f"snapshots/pets/{number}.json"
        store.put_json(key, store.read_json(key) | {"created": (datetime.now(UTC) - timedelta(days=5 - number)).isoformat()})
    return store


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy(), [1, 2, 3, 4, 5]),
        (Policy(keep_last=2), [3, 4, 5]),
        (Policy(keep_last=0), []),
        (Policy(keep_last=0, named=frozenset({"pets@2"})), [2]),
        (Policy(newer_than=datetime.now(UTC) - timedelta(days=2, hours=1)), [3, 4, 5]),
        (Policy(keep_last=1, newer_than=datetime.now(UTC) + timedelta(days=1)), [3, 5]),
    ],
)
def test_policies(pets, policy, kept):
    assert gc(pets, policy, dry_run=True).kept == [f"pets@{number}" for number in kept]


def test_the_promoted_one_stays_and_the_one_that_demote_brings_back(pets):
    for number in (1, 2, 4):
        manifests.promote(pets, "pets", number, "better")
    assert gc(pets, Policy(keep_last=1)).kept == ["pets@2", "pets@3", "pets@4", "pets@5"]
    assert [manifests.demote(pets, "pets", "worse")["number"] for _ in range(2)] == [2, None]


def test_a_policy_that_makes_no_sense_is_refused(pets):
    with pytest.raises(InputError, match="pets@9: no such snapshot stands"):
        gc(pets, Policy(keep_last=1, named=frozenset({"pets@9"})))
    with pytest.raises(InputError, match="--keep: alone drops nothing"):
        gc(pets, Policy(named=frozenset({"pets@1"})))


def test_nothing_goes_where_it_is_not_known_what_is_needed(mine):
    record = next(iter((mine.local or Path()).glob("records/*.json")))
    whole = record.read_bytes()
    record.write_bytes(whole[:-1])
    before = set(mine.sizes(""))
    with pytest.raises(StoreError, match="what it needs isn't known, so nothing is removed"):
        gc(mine, Policy(keep_last=1))
    fingerprint = manifest_of("mini@3", mine)["stages"][0]["fingerprint"]
    record.write_bytes(whole)
    (mine.local or Path()).joinpath("records", f"{fingerprint}.json").unlink()
    with pytest.raises(StoreError, match="the record of its stage 'raw' is missing"):
        gc(mine, Policy(keep_last=1))
    assert set(mine.sizes("")) == before - {f"records/{fingerprint}.json"}


def test_tables_that_are_none_of_ours_are_left_alone(pets):
    lancedb.connect(pets.uri).create_table("notes", pa.table({"x": [1]}))
    gc(pets, Policy(keep_last=0))
    assert not pets.list("pets.lance/") and lancedb.connect(pets.uri).open_table("notes").count_rows() == 1


def test_the_command(pets):
    from flows.cli.app import app

    planned = CliRunner().invoke(app, ["gc", "--newer-than", "49h", "--dry-run", "--json", "--store", pets.uri])
    told = json.loads(planned.stdout)
    assert (told["dropped"], told["dry_run"]) == (["pets@1", "pets@2"], True) and told["bytes_removed"] > 0
    ended = CliRunner().invoke(app, ["gc", "--keep-last", "1", "--keep", "pets@1", "--store", pets.uri])
    assert "with pets@2, pets@4; 3 of 5 snapshots stay" in ended.stdout
    assert "gc kept the last 1, what is promoted, what was named" in CliRunner().invoke(app, ["show", "pets@2", "--store", pets.uri]).stdout
    refused = CliRunner().invoke(app, ["gc", "--newer-than", "soon", "--store", pets.uri])
    assert (refused.exit_code, "is no age and no date" in refused.stderr) == (1, True)


def test_a_record_goes_before_those_that_it_refers_to(mine):
    """Else a crash between them would leave a stage that is reused though its pictures are gone."""
    removed = [removal.key for removal in gc(mine, Policy(keep_last=0, newer_than=datetime.now(UTC) + timedelta(hours=1))).removed]
    stages = {stage["name"]: stage["fingerprint"] for stage in manifest_of("mini@1", mine)["stages"]}
    places = {name: removed.index(f"records/{fingerprint}.json") for name, fingerprint in stages.items()}
    assert places["raw"] > max(places["split"], places["looks"], places["core"]) and places["core"] != places["looks"]
    assert not mine.list("stages/") and not mine.list("records/") and verify(mine).sound


def test_the_record_of_a_run_that_was_never_published_stays_until_another_run_comes(mine):
    ref = commit_fragments(mine, "stages/mini.try", X, write_batches(mine, "stages/mini.try", [], X), fingerprint="a" * 64)
    put_record(mine, Record("a" * 64, "try", "op", {}, ref, None, {}, {}, version_facts(mine, [ref], {})), {})
    first = begin_run(mine, "mini", {"try": "a" * 64}, "stillroom build mini.yaml --until try")
    end_run(mine, first, "Completed")
    gc(mine)
    assert read_record(mine, "a" * 64)
    time.sleep(1.1)  # the log orders runs by the second
    end_run(mine, begin_run(mine, "mini", {"raw": "b" * 64}, "stillroom build mini.yaml"), "Completed")
    gc(mine)
    assert read_record(mine, "a" * 64) is None and not mine.list("stages/mini.try.lance/")
