"""The crash harness: a few real kills come out well, and its checks see what they are there for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from benchmarks.crash.builds import Event
from benchmarks.crash.checks import ahead, look
from benchmarks.crash.rounds import Begun, choose, differences
from stillroom.digests import TableDigest
from stillroom.records import Record, TableRef
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.publish import publish_manifest
from storage.records import put_record

ROOT = Path(__file__).parents[2]
TABLE = pa.table({"sample_id": ["a", "b", "c"], "split": ["train", "train", "test"]})


@pytest.mark.long
@pytest.mark.server
@pytest.mark.slow
def test_builds_killed_at_random_moments_and_boundaries_end_as_if_nothing_had_been():
    from flows.server import ensure_server

    ensure_server()  # that of the session, in its STILLROOM_HOME
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--small", "--kills", "6", "--chain", "3", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kills = [kill for played in json.loads(ran.stdout) for kill in played["kills"]]
    assert len(kills) == 6
    assert {kill["who"] for kill in kills} <= {"build", "machine"}
    assert 0 < sum(kill["point"].startswith("by the clock") for kill in kills) < 6


# The checks find what they look for


@pytest.fixture
def published(store: Path) -> Store:
    """A store with one record and a snapshot of its table."""
    found = Store(store)
    put_record(found, record("pets", put(found, "stages/pets.all", "a" * 64)), {})
    publish(found, put(found, "pets", "b" * 64))
    assert look(found) == ahead(found) == []
    return found


def put(store: Store, name: str, fingerprint: str) -> TableRef:
    digest = TableDigest(TABLE.schema)
    for batch in TABLE.to_batches():
        digest.update(batch)
    fragments = write_batches(store, name, TABLE.to_batches(), TABLE.schema)
    return commit_fragments(store, name, TABLE.schema, fragments, fingerprint=fingerprint, digest=digest.hexdigest())


def record(stage: str, ref: TableRef) -> Record:
    return Record(ref.fingerprint, stage, "made.up", {}, ref, None, {}, {})


def publish(store: Store, ref: TableRef) -> None:
    table = {"name": ref.name, "version": ref.version, "rows": ref.rows, "fingerprint": ref.fingerprint, "digest": ref.digest, "columns": {}, "files": {}}
    manifest = {"name": "pets", "digest": ref.digest, "rows": 3, "trial": False, "splits": {"train": 2, "test": 1}}
    publish_manifest(store, {**manifest, "table": table, "files": {}, "stages": []})


def test_a_table_that_lost_a_file_is_seen(published):
    for file in (published.local / "stages" / "pets.all.lance" / "data").iterdir():
        file.unlink()
    (problem,) = look(published)
    assert problem.startswith("record of stage pets: ")


def test_a_record_of_other_rows_is_seen(published):
    ref = put(published, "stages/pets.few", "c" * 64)
    put_record(published, record("few", TableRef(ref.name, ref.version, 2, ref.fingerprint, ref.digest)), {})
    put_record(published, record("other", TableRef(ref.name, ref.version, 3, "d" * 64, "of other rows")), {})
    assert look(published) == ["record of stage few: 3 rows, 2 expected", "record of stage other: its digest differs"]


def test_a_version_that_nobody_published_is_seen_on_top(published):
    put(published, "pets", "e" * 64)
    assert ahead(published) == ["pets version 3"]


def test_a_snapshot_without_its_table_is_seen(published):
    ref = TableRef("pets", lance.dataset(published.table_uri("pets")).version + 7, 3, "f" * 64, "other")
    publish(published, ref)
    assert [problem.partition(":")[0] for problem in look(published)] == ["snapshot pets@2"]


def job(label: str, moment: str = "before") -> Event:
    return Event(0.0, 1, "job", moment, label)


def test_what_was_finished_and_is_done_again_is_seen(published):
    for key in ("work/ff/0-256.json", "work/ff/again/files-0.json", "work/ee/checkpoints/seed-0/fit", "work/ee/checkpoints/seed-1/fit"):
        published.put(key, b"{}")
    begun = Begun(published, workers=2)
    begun.before_build()
    fine = [job("row_job ff sound 256-512"), job("source_job ff raw files-0"), job("unit_job ee teacher seed-1"), job("unit_job ee teacher seed-1", "after")]
    fine += [Event(0.0, 1, "checkpoint", "read", "work/ee/checkpoints/seed-1/fit")]
    assert begun.done_again(fine) == []
    for events, problem in [
        ([job("row_job ff sound 0-256")], "a finished partition ran again: row_job ff sound 0-256"),
        ([job("source_job ff raw files-0 again")], "a finished partition ran again: source_job ff raw files-0 again"),
        ([job(f"select_job {'a' * 64} pets")], f"a finished stage ran again: select_job {'a' * 64} pets"),
        ([job("unit_job ee teacher seed-0", "after")], "a checkpoint was not taken over: work/ee/checkpoints/seed-0/fit"),
    ]:
        assert begun.done_again(events) == [problem]


def test_partitions_that_were_begun_and_not_noted_are_lost(published):
    published.put("work/ff/0-256.json", b"{}")
    log = [job("row_job ff sound 0-256"), job("row_job ff sound 256-512"), job(f"unit_job {'a' * 64} pets all"), job("rows_job ee teacher")]
    assert Begun(published, workers=2).lost(log) == ["row_job ff sound 256-512"]


def test_the_end_of_a_build_is_compared_name_by_name():
    assert differences({"a": 1, "b": {"c": [1, 2]}, "d": 0}, {"a": 1, "b": {"c": [1, 3]}, "e": 0}) == [
        "d is missing",
        "e is there, and not after an uninterrupted build",
        "b differs: .c[1] 2 became 3",
    ]


def test_moments_are_chosen_from_every_kind():
    import random

    log = [Event(0.0, 1, kind, moment, f"{kind}-{n % 3}") for kind in ("write", "commit") for n in range(9) for moment in ("before", "after")]
    chosen = choose(log, 6, random.Random(0))
    assert {(target.kind, target.moment) for target in chosen} == {(kind, moment) for kind in ("write", "commit") for moment in ("before", "after")}
    assert len(set(chosen)) == 6
    assert all(target.nth in (0, 1, 2) for target in chosen)
