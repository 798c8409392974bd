"""The log of builds: a killed one is told from a slow one, and gc and builds see each other."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stillroom.errors import StoreError
from stillroom.stores import Store
from storage import runs
from storage.leases import lease
from storage.runs import begin_run, drop_run, end_run, last_run, list_runs, live_runs, note_run

PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

BUILD = """
import sys, time
from stillroom.stores import Store
from storage.runs import begin_run
print(begin_run(Store(sys.argv[1]), "photos", {}, "stillroom build photos.yaml"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def build(store):
    """A build in a process of its own, begun and at work."""
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def states(store: Path) -> list[str]:
    return [run["state"] for run in list_runs(Store(store))]


@PROC
def test_a_killed_build_is_crashed_at_once_and_a_stopped_one_never(store, build):
    assert states(store) == ["Running"]
    build.send_signal(signal.SIGSTOP)
    made = Store(store)
    (beat,) = made.list("beats/")
    hours_ago = time.time() - 10 * 3600
    os.utime(store / beat, (hours_ago, hours_ago))
    assert (states(store), len(live_runs(made))) == (["Running"], 1)
    build.kill()
    build.wait()
    assert (states(store), live_runs(made)) == (["Crashed"], [])
    (run,) = list_runs(made)
    assert run["message"] == f"process {build.pid} on {os.uname().nodename} ended without a word"
    assert run["command"] == "stillroom build photos.yaml"


def elsewhere(store: Path, run: str) -> Path:
    """Makes a run one of another machine; returns the file of its beat."""
    made = Store(store)
    note_run(made, run, holder={"host": "node-7", "boot": "another boot", "pid": 1, "started": 1})
    return store / made.read_json(f"runs/{run}.json")["beat"]


def test_on_another_machine_the_beat_decides_by_the_stores_clock(store):
    run = begin_run(Store(store), "photos", {}, "")
    beat = elsewhere(store, run)
    for silent_s, state, live in [(0, "Running", 1), (60, "Running", 1), (300, "Crashed", 1), (7200, "Crashed", 0), (0, "Running", 1)]:
        then = time.time() - silent_s
        os.utime(beat, (then, then))
        assert (states(store), len(live_runs(Store(store)))) == ([state], live), silent_s
    end_run(Store(store), run, "Completed")
    assert (states(store), live_runs(Store(store))) == (["Completed"], [])
    assert Store(store).list("beats/") == []


def test_a_run_of_before_beats_is_dead(store):
    Store(store).put_json("runs/old.json", {
        "id": "old", "recipe": "photos", "state": "Running", "started": "2026-01-01T00:00:00+00:00", "message": "", "command": "", "fingerprints": {},
    })  # fmt: skip
    assert (states(store), live_runs(Store(store))) == (["Crashed"], [])


def test_only_a_run_that_planned_counts_as_the_last_one(store):
    made = Store(store)
    first = begin_run(made, "photos", {}, "")
    note_run(made, first, fingerprints={"raw": "f" * 64})
    end_run(made, first, "Completed")
    second = begin_run(made, "photos", {}, "")
    assert last_run(made, "photos") == {"raw": "f" * 64}
    drop_run(made, second)
    assert [run["id"] for run in list_runs(made)] == [first]
    with pytest.raises(StoreError, match="is gone from the store"):
        note_run(made, second, fingerprints={})


def test_a_build_that_begins_while_gc_runs_is_seen_by_it_and_waits(store):
    made, begun, told = Store(store), [], []
    with lease(made, "gc"):
        thread = threading.Thread(target=lambda: begun.append(begin_run(made, "photos", {}, "", waiting=told.append)))
        thread.start()
        deadline = time.monotonic() + 10
        while not live_runs(made):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        thread.join(0.6)
        assert begun == []
    thread.join(10)
    assert len(begun) == 1
    assert told == [f"process {os.getpid()} on {os.uname().nodename}"]
    drop_run(made, begun[0])


def test_listing_changes_nothing(store):
    run = begin_run(Store(store), "photos", {}, "")
    beat = elsewhere(store, run)
    then = time.time() - runs.SILENT_S - 60
    os.utime(beat, (then, then))
    before = {key: Store(store).read(key) for key in Store(store).list("")}
    assert states(store) == ["Crashed"]
    assert {key: Store(store).read(key) for key in Store(store).list("")} == before
    drop_run(Store(store), run)
