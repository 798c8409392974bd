"""Processes at once on one store, in a folder and in a bucket: builders of the same and of other recipes, gc again and again, and readers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stillroom
from flows.server import ensure_server
from stillroom.snapshots import list_snapshots, withdrawn
from stillroom.stores import Store
from storage.runs import list_runs
from storage.verify import verify

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.long]

RECIPE = """name: {name}
seed: {seed}
stages:
  raw: {{op: ingest.parquet, path: rows.parquet, id: "column:key", shard_rows: 500}}
  parts: {{op: table.split, from: raw, validation: 0%, test: 20%}}
  few: {{op: table.sample, from: parts, rows: 700}}
publish:
  splits: {{train: few.train, test: few.test}}
"""
ROUNDS = 4

BUILDER = """
    import sys
    import stillroom
    store, *recipes = sys.argv[1:]
    for recipe in recipes:
        stillroom.build(recipe, store=store, workers=1)
"""
SWEEPER = """
    import sys
    from pathlib import Path
    from stillroom.stores import Store
    from storage.gc import Policy, gc
    store, stop = sys.argv[1:]
    swept = 0
    while not Path(stop).exists():
        swept += len(gc(Store(store), Policy(keep_last=2)).dropped)
    print(swept)
"""
READER = """
    import sys, time
    from pathlib import Path
    import stillroom
    from stillroom.errors import StillroomError
    from stillroom.snapshots import list_snapshots, withdrawn
    from stillroom.stores import Store
    store, stop = Store(sys.argv[1]), Path(sys.argv[2])
    read = 0
    while not stop.exists():
        for line in list_snapshots(store):
            name, number = line["name"], line["number"]
            try:
                snapshot = stillroom.open(f"{name}@{number}", store, verify=True)
                ids = [key for split in snapshot.splits for batch in snapshot.arrow(split, ["sample_id"], batch_size=1000) for key in batch["sample_id"].to_pylist()]
            except (StillroomError, OSError, ValueError):
                if withdrawn(store, name, number):
                    continue  # gc took it while it was read
                raise
            assert len(ids) == len(set(ids)) == sum(snapshot.splits.values()), (name, number, len(ids))
            read += 1
        time.sleep(0.05)
    print(read)
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Callable[[str], list[Path]]:
    """Writes the recipes of a name, one a seed, over the same 2,000 rows."""
    pq.write_table(pa.table({"key": [f"k{number:04}" for number in range(2000)], "score": pa.array(range(2000), pa.float32())}), tmp_path / "rows.parquet")

    def write(name: str) -> list[Path]:
        paths = [tmp_path / f"{name}-{seed}.yaml" for seed in range(ROUNDS)]
        for seed, path in enumerate(paths):
            path.write_text(RECIPE.format(name=name, seed=seed))
        return paths

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script as a process of its own."""
    started = []

    def start(script: str, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", dedent(script), *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, cwd=tmp_path, **pipes))  # type: ignore[call-overload]
        return started[-1]

    ensure_server()
    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_builders_gc_and_readers_at_once_lose_and_double_nothing(kind, request, recipes, start, tmp_path):
    store = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("s3")
    stop, one, two = tmp_path / "stop", recipes("one"), recipes("two")
    builders = [start(BUILDER, store, *paths) for paths in (one, one, two)]
    others = [start(SWEEPER, store, stop), start(READER, store, stop)]
    try:
        said = [builder.communicate(timeout=400) for builder in builders]
    finally:
        stop.touch()
    swept, read = (process.communicate(timeout=100) for process in others)
    assert [builder.returncode for builder in builders] == [0, 0, 0], said
    assert [process.returncode for process in others] == [0, 0], (swept, read)
    assert int(swept[0]) > 0 and int(read[0]) > 0

    # Each content has one number, whoever came first; it is that of a build alone.
    alone = tmp_path / "alone"
    for path in (*one, *two):
        stillroom.build(path, store=alone, workers=1)
    for name in ("one", "two"):
        numbers = [line["number"] for line in list_snapshots(Store(store)) if line["name"] == name]
        assert sorted(numbers) == list(range(1, ROUNDS + 1))
        assert digests(store, name) == digests(alone, name)

    # What gc kept is whole, and nobody left anything at work.
    assert verify(Store(store)).sound
    assert sum(1 for name in ("one", "two") for number in range(1, ROUNDS + 1) if not withdrawn(Store(store), name, number)) >= 4
    assert [Store(store).list(prefix) for prefix in ("leases/", "beats/", "work/")] == [[], [], []]
    assert {run["state"] for run in list_runs(Store(store))} == {"Completed"}


def digests(store: str | Path, name: str) -> set[str]:
    """The digests of all snapshots that ever had that name."""
    return {Store(store).read_json(f"snapshots/{name}/{number}.json")["digest"] for number in range(1, ROUNDS + 1)}
