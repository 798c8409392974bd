"""Builds at once on one store, as processes and as threads: every stage made once, a killed build taken over, nothing lost, doubled or left.

Operators of a third party leave a file for whatever they begin and finish, so that the test can count.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent

import pytest

import stillroom
from flows.build import BuildResult, build_recipe
from flows.server import ensure_server
from stillroom.snapshots import list_snapshots
from stillroom.stores import Store
from storage.runs import list_runs
from tests.flows.asking import ask
from tests.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.long]

PATIENCE_S = 180  # for a machine that is busy with ten other things

OPERATORS = {
    "ingest/slow": """
        import os, time
        from pathlib import Path
        import pyarrow as pa
        from stillroom.operators import Params, Unit, source

        class Slow(Params):
            folder: str

        def units(params):
            return [Unit(str(number), number, number + 1) for number in range(4)]

        @source(version=1, units=units, adds={"sample_id": pa.string(), "split": pa.string()})
        def slow(unit, params: Slow):
            Path(params.folder, f"begun-{unit.name}-{os.urandom(4).hex()}").touch()
            while unit.start and Path(params.folder, "hold").exists():
                time.sleep(0.05)
            ids = [f"{unit.name}/{number:03}" for number in range(100)]
            yield pa.record_batch({"sample_id": ids, "split": [("train", "test")[number % 2] for number in range(100)]})
            Path(params.folder, f"done-{unit.name}-{os.urandom(4).hex()}").touch()
    """,
    "filter/odd": """
        import os
        from pathlib import Path
        import pyarrow as pa
        from stillroom.operators import Params, Rows, row

        class Odd(Params):
            folder: str

        @row(version=1, adds={"odd": pa.bool_()})
        def odd(batch, params: Odd):
            Path(params.folder, f"done-odd-{os.urandom(4).hex()}").touch()
            return Rows(batch.append_column("odd", pa.array([int(sample[-1]) % 2 == 1 for sample in batch["sample_id"].to_pylist()])))
    """,
}

RECIPE = """name: {name}
seed: {seed}
stages:
  raw: {{op: ingest.slow, folder: "{folder}"}}
  odd: {{op: filter.odd, from: raw, folder: "{folder}"}}
  few: {{op: table.sample, from: odd, rows: 250}}
"""
PUBLISH = """publish:
  splits: {train: few.train, test: few.test}
"""


@pytest.fixture(scope="module")
def site(installing: Callable[..., AbstractContextManager[Path]]) -> Iterator[Path]:
    """A folder with a distribution of those operators, on this process's path."""
    with installing("slow", {name: dedent(body) for name, body in OPERATORS.items()}) as site:
        yield site


@pytest.fixture
def write(tmp_path: Path, site: Path) -> Callable[..., Path]:
    """Writes a recipe whose operators count in `tmp_path/counts`."""
    (tmp_path / "counts").mkdir()

    def write(name: str, *, seed: int = 1, publish: str = PUBLISH) -> Path:
        path = tmp_path / f"{name}-{seed}.yaml"
        path.write_text(RECIPE.format(name=name, seed=seed, folder=tmp_path / "counts") + publish)
        return path

    return write


def counted(folder: Path, what: str) -> Counter[str]:
    """How often each unit did that."""
    return Counter(re.fullmatch(rf"{what}-(\w+)-\w+", file.name)[1] for file in folder.glob(f"{what}-*"))  # type: ignore[index]


def said(folder: Path, number: int) -> str:
    """What the build that was started as this one has said so far."""
    return (folder / f"said-{number}").read_text()


def descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


@pytest.fixture
def start(site: Path, store: Path, tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Starts a build in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    started = []

    def start(recipe: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from flows.cli.app import main; main()", "build", str(recipe), "--store", str(store), "--workers", "1"]
        with open(tmp_path / f"said-{len(started)}", "wb") as stderr:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment))
        return started[-1]

    ensure_server()
    yield start
    for process in started:
        process.kill()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_of_three_builds_one_is_killed_and_the_others_end_right(write, start, store, tmp_path):
    counts = tmp_path / "counts"
    (counts / "hold").touch()
    killed = start(write("one"))
    wait_for(lambda: counted(counts, "begun") == {"0": 1, "1": 1}, PATIENCE_S)
    same, other = start(write("one")), start(write("two", publish=""))
    for number in (1, 2):
        wait_for(lambda number=number: f"waits for another build that makes it (process {killed.pid} on" in said(tmp_path, number), PATIENCE_S)
    workers = descendants(killed.pid)
    killed.kill()
    wait_for(lambda: counted(counts, "begun")["1"] == 2, PATIENCE_S)
    (counts / "hold").unlink()
    assert [build.wait(PATIENCE_S) for build in (killed, same, other)] == [-9, 0, 0], [said(tmp_path, 1), said(tmp_path, 2)]

    # Made once, but for the unit that the killed build was at; an heir of another recipe makes the first again, too:
    # the dead one's file lies in the table of its own recipe.
    begun = counted(counts, "begun")
    assert begun == {"0": begun["0"], "1": 2, "2": 1, "3": 1} and begun["0"] <= 2
    assert counted(counts, "done") == dict.fromkeys("0123", 1) | {"0": begun["0"], "odd": 2}

    # What readers see.
    assert {f"{line['name']}@{line['number']}" for line in list_snapshots(Store(store))} == {"one@1"}
    ids = stillroom.open("one@1", store).arrow("train", ["sample_id"], batch_size=1000)
    assert len(set(sample for batch in ids for sample in batch["sample_id"].to_pylist())) == stillroom.open("one@1", store).splits["train"]

    # Nothing is left of the dead, and everybody knows.
    assert [Store(store).list(prefix) for prefix in ("leases/", "beats/", "work/")] == [[], [], []]
    assert not [pid for pid in workers if Path(f"/proc/{pid}/stat").exists()]
    runs = {run["state"]: run for run in list_runs(Store(store))}
    assert set(runs) == {"Crashed", "Completed"}
    assert runs["Crashed"]["holder"]["pid"] == killed.pid
    flow_run = {"flow_runs": {"id": {"any_": [runs["Crashed"]["flow_run"]["id"]]}}}
    wait_for(lambda: [run["state_type"] for run in ask("flow_runs/filter", flow_run)] == ["CRASHED"], PATIENCE_S)
    assert "RUNNING" not in {run["state_type"] for run in ask("task_runs/filter", flow_run)}


def test_threads_that_build_at_once_get_numbers_of_their_own(write, store, tmp_path):
    ensure_server()
    results: list[BuildResult] = []

    def build(recipe: Path) -> None:
        results.append(build_recipe(recipe, store, workers=1))

    recipes = [write("one"), write("one"), write("one", seed=2)]
    threads = [threading.Thread(target=build, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while any(thread.is_alive() for thread in threads):
        for line in list_snapshots(Store(store)):
            seen.append(sum(batch.num_rows for batch in stillroom.open(f"one@{line['number']}", store).arrow("train", ["sample_id"], batch_size=1000)))
        time.sleep(0.1)
    assert sorted(result.snapshot for result in results) in (["one@1", "one@1", "one@2"], ["one@1", "one@2", "one@2"])
    assert counted(tmp_path / "counts", "done") == dict.fromkeys("0123", 1) | {"odd": 2}
    assert [line["number"] for line in list_snapshots(Store(store))] == [1, 2]
    assert len(set(seen)) <= 2  # a reader never saw a part of one
