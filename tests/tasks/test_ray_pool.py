"""The engine over Ray: nodes simulated on this machine give the digests of plain workers, also when one of them is lost.

What the engine promises over any pool stands in `test_engine.py`; here is what is Ray's.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow as pa
import pytest

import stillroom
from flows.build import build_recipe
from flows.events import StageDone
from flows.plan import make_plan
from stillroom.errors import InputError, StageError
from stillroom.records import Record
from stillroom.stores import Store
from tasks.engine import run_stage
from tasks.environment import environment
from tasks.pool import Job, Pool
from tasks.ray_pool import RayPool
from tasks.specs import StageSpec
from tests.waiting import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # starting nodes forks, to run another program at once
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray isn't installed: pip install 'stillroom[ray]'")
ROOT = Path(stillroom.__file__).parents[1]

RECIPE = """name: spread
seed: 3
stages:
  raw: {op: ingest.digits}
  few: {op: table.sample, from: raw, rows: 1200}
  parts: {op: table.split, from: few, validation: 10%, test: 10%}
  looks: {op: score.embed, from: parts, net: pixels, side_px: 8, channels: 1}
  core: {op: prune.random, from: looks.train, keep: 90%, balance: label}
  teacher: {op: train.teacher, from: {samples: parts.train}, net: "cnn:4", steps: 20, seeds: 2}
  slow: {op: filter.slow, from: core, folder: FOLDER}
  agreed: {op: filter.teacher_agreement, from: {samples: slow, teacher: teacher}, min_probability: 0.05}
"""

# A third party's operator: it notes which node works on which rows, and takes its time; on a node that is to be held, all of it.
SLOW = """
    import sys, time
    from pathlib import Path
    import pyarrow as pa
    from stillroom.operators import Params, Rows, row

    class Slow(Params):
        folder: str

    def node():
        ray = sys.modules.get("ray")
        return ray.get_runtime_context().get_node_id() if ray else "here"

    @row(version=1, adds={"first": pa.bool_()})
    def slow(batch, params: Slow):
        Path(params.folder, f"{node()}.{batch['sample_id'][0]}").touch()
        time.sleep(600 if Path(params.folder, "held", node()).exists() else 1)
        return Rows(batch.append_column("first", pa.array([place == 0 for place in range(batch.num_rows)])))
"""


@pytest.fixture(scope="module", autouse=True)
def _slow_package(installing: Callable[..., AbstractContextManager[Path]]) -> Iterator[None]:
    """A distribution with `filter.slow`, installed on every node by PYTHONPATH."""
    with installing("slow", {"filter/slow": dedent(SLOW)}) as site, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def cluster(_slow_package: None) -> Iterator[Any]:
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def pool(cluster: Any) -> Iterator[RayPool]:
    found = RayPool(cluster.address)
    yield found
    found.close()


def build(folder: Path, store: Path, pool: Pool) -> dict[str, Record]:
    """Run the recipe's stages one after another; `folder` gets a file for each batch of `slow`."""
    folder.mkdir(exist_ok=True)
    recipe = folder.parent / f"{folder.name}.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(folder)))
    plan = make_plan(recipe, store, [])
    records: dict[str, Record] = {}
    for planned in plan.stages:
        records[planned.name] = run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
    return records


def outcome(records: dict[str, Record]) -> dict[str, Any]:
    return {name: (record.table.digest, record.columns, record.counts) for name, record in records.items()}


@pytest.fixture(scope="module")
def plain(_slow_package: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the recipe comes to with two plain workers."""
    folder = tmp_path_factory.mktemp("plain")
    workers = Pool(2)
    try:
        return outcome(build(folder / "marks", folder / "store", workers))
    finally:
        workers.close()


def began(folder: Path) -> dict[str, set[str]]:
    """The first sample ids of the batches that each node began."""
    found: dict[str, set[str]] = {}
    for file in folder.glob("*.*"):
        node, sample_id = file.name.split(".", 1)
        found.setdefault(node, set()).add(sample_id)
    return found


# Builds


@needs_ray
@pytest.mark.slow
def test_nodes_share_the_work_and_one_lost_in_between_changes_no_digest(plain, cluster, pool, tmp_path):
    doomed = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    held = tmp_path / "marks" / "held" / doomed.node_id
    held.parent.mkdir(parents=True)
    held.touch()
    found: dict[str, Record] = {}
    builder = threading.Thread(target=lambda: found.update(build(tmp_path / "marks", tmp_path / "store", pool)))
    builder.start()
    wait_for(lambda: doomed.node_id in began(tmp_path / "marks"), 180)
    cluster.remove_node(doomed, allow_graceful=False)
    builder.join()
    assert outcome(found) == plain
    marks = began(tmp_path / "marks")
    begun_by_the_lost = marks.pop(doomed.node_id)
    assert set(marks) == {node.node_id for node in cluster.list_all_nodes()}
    assert begun_by_the_lost & set().union(*marks.values()), "what the lost node had begun was done by another"


@needs_ray
@pytest.mark.server
@pytest.mark.slow
def test_a_build_on_a_cluster_publishes_the_snapshot_of_one_machine(cluster, recipe, tmp_path, monkeypatch):
    text = """
        name: small
        stages:
          raw: {op: ingest.digits}
          few: {op: table.sample, from: raw, rows: 300}
          parts: {op: table.split, from: few, validation: 20%, test: 20%}
        publish:
          splits: {train: parts.train, test: parts.test}
    """
    path = recipe(dedent(text))
    here = build_recipe(path, tmp_path / "here", workers=1)
    monkeypatch.setenv("STILLROOM_RAY_ADDRESS", cluster.address)
    told: list[Any] = []
    there = build_recipe(path, tmp_path / "there", listener=told.append)
    assert there.snapshot == here.snapshot == "small@1"
    digests = [stillroom.open("small@1", store=tmp_path / store).manifest["table"]["digest"] for store in ("here", "there")]
    assert digests[0] == digests[1]
    assert {event.name for event in told if isinstance(event, StageDone)} == {"raw", "few", "parts", "publish"}


# Jobs


@needs_ray
@pytest.mark.slow
def test_results_come_in_the_order_of_the_jobs(pool):
    told: list[tuple[int, Any]] = []
    assert pool.run([Job(divmod, (number, 3)) for number in range(7)], stage="s", on_result=lambda *each: told.append(each)) == [divmod(n, 3) for n in range(7)]
    assert sorted(told) == [(number, divmod(number, 3)) for number in range(7)]


@needs_ray
@pytest.mark.slow
def test_a_jobs_error_comes_out_as_itself_with_its_traceback(pool):
    def refuse() -> None:
        raise StageError("filter.refuses", "the rows are too blue", "paint them")

    with pytest.raises(StageError) as error:
        pool.run([Job(refuse, ())], stage="s")
    assert (type(error.value), error.value.args) == (StageError, ("filter.refuses", "the rows are too blue", "paint them"))
    assert "in refuse" in str(error.value.__cause__)


@needs_ray
@pytest.mark.slow
def test_an_error_that_does_not_pickle_and_an_exit_say_what_they_were(pool):
    class OddError(Exception):
        def __init__(self, first: str, *, second: str) -> None:
            super().__init__(f"{first} and {second}")

    def odd() -> None:
        raise OddError("one", second="two")

    with pytest.raises(RuntimeError, match="OddError: one and two"):
        pool.run([Job(odd, ())], stage="s")
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        pool.run([Job(sys.exit, (3,))], stage="s")


@needs_ray
@pytest.mark.slow
def test_a_killed_workers_job_is_done_again(pool, tmp_path):
    def die_once(folder: Path) -> str:
        if not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert pool.run([Job(die_once, (tmp_path,))], stage="s") == ["done"]
    assert (tmp_path / "died").exists()


@needs_ray
@pytest.mark.slow
def test_a_job_that_kills_its_worker_every_time_is_given_up(pool):
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StageError, match="^stage 's': a worker process died 2 times over the same work; is there enough memory on a node"):
        pool.run([Job(die, ())], stage="s", retries=1)


@needs_ray
@pytest.mark.slow
def test_more_threads_than_any_node_has_still_run(pool):
    assert pool.run([Job(divmod, (7, 2), threads=64)], stage="s") == [(3, 1)]


@needs_ray
@pytest.mark.slow
def test_a_stage_that_wants_a_gpu_where_there_is_none_is_refused(pool):
    spec = StageSpec(
        store="", stage="drawn", operator="", params={}, seed=0, fingerprint="", parts={}, table="", schema=pa.schema([]), inputs={}, device="cuda"
    )
    with pytest.raises(StageError, match="^stage 'drawn': wants a GPU .*, and no node of the cluster has one; leave run.device out$"):
        pool.run([Job(id, (spec,))], stage="drawn")


@needs_ray
@pytest.mark.slow
def test_progress_reaches_the_driver(cluster, pool):
    def work() -> None:
        from tasks.pool import report_progress

        report_progress("key", "unit", 1, 2)
        report_progress("key", "unit", 2, 2)

    told: list[Any] = []
    watched = RayPool(cluster.address, 1, lambda *message: told.append(message))
    try:
        watched.run([Job(work, ())], stage="s")
        wait_for(lambda: ("key", "unit", 2, 2) in told, 30)
    finally:
        watched.close()
    assert pool.run([Job(divmod, (7, 2))], stage="s") == [(3, 1)], "another pool of this process goes on"


@needs_ray
@pytest.mark.slow
def test_a_pool_that_is_stopped_ends_its_jobs(cluster, pool, tmp_path):
    def wait(folder: Path) -> None:
        (folder / "begun").touch()
        time.sleep(600)

    stopped = RayPool(cluster.address)
    stopper = threading.Thread(target=lambda: (wait_for((tmp_path / "begun").exists, 30), stopped.stop()))
    stopper.start()
    with pytest.raises(StageError, match="^stage 's': the build was stopped$"):
        stopped.run([Job(wait, (tmp_path,))], stage="s")
    stopper.join()


# The nodes


@needs_ray
@pytest.mark.slow
def test_workers_run_as_plain_ones_do(pool):
    def look() -> dict[str, str]:
        return {name: os.environ.get(name, "") for name in ("PYTHONSAFEPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")}

    assert pool.run([Job(look, ())], stage="s") == [{"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}]


@needs_ray
@pytest.mark.slow
def test_a_node_with_other_packages_is_refused(cluster, pool, monkeypatch):
    ours = environment()
    monkeypatch.setattr("tasks.ray_pool.environment", lambda: ours | {"packages": ours["packages"] | {"numpy": "1.0"}})
    other = RayPool(cluster.address)
    try:
        with pytest.raises(InputError, match=r"^node [\d.]+: has numpy 2.*, and the build runs with 1.0; install the same packages on every node$"):
            other.run([Job(divmod, (7, 2))], stage="s")
    finally:
        other.close()


@needs_ray
@pytest.mark.slow
def test_a_node_that_sees_another_store_is_refused(cluster, pool, tmp_path):
    store = Store(tmp_path / "store")
    store.put_json("store.json", {"format": 1, "id": "ours"})
    shared = RayPool(cluster.address, store=store)
    try:
        store.put_json("store.json", {"format": 1, "id": "another"})
        with pytest.raises(InputError, match="is another one on node .*; a cluster needs an object store, or a folder that all nodes share$"):
            shared.run([Job(divmod, (7, 2))], stage="s")
    finally:
        shared.close()


DRIVER = """
from pathlib import Path
from tasks.pool import Job
from tasks.ray_pool import RayPool

def where():
    import tasks.pool
    return tasks.pool.__file__

def wait():
    import os, time
    from pathlib import Path
    Path({folder!r}, "worker").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    pool = RayPool({address!r})
    Path({folder!r}, "file").write_text(pool.run([Job(where, ())], stage="s")[0])
    pool.run([Job(wait, ())], stage="s")
"""


@needs_ray
@pytest.mark.slow
def test_a_hostile_folder_hides_nothing_and_workers_end_with_their_driver(cluster, tmp_path):
    (tmp_path / "tasks.py").write_text("raise SystemExit('hostile')")
    script = tmp_path / "elsewhere" / "driver.py"
    script.parent.mkdir()
    script.write_text(DRIVER.format(folder=str(tmp_path), address=cluster.address))
    driver = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)
    try:
        wait_for(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text(), 60)
    finally:
        driver.kill()
        driver.wait()
    assert (tmp_path / "file").read_text() == str(ROOT / "tasks" / "pool.py")
    worker = Path("/proc", (tmp_path / "worker").read_text())
    wait_for(lambda: not worker.exists(), 30)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_answers_is_one_line_at_once(address):
    with pytest.raises(InputError, match=rf"^cluster '{address}': nothing answers: .*refused; `ray status` on the head node says whether it is up$"):
        RayPool(address)


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^cluster 'auto': Ray isn't installed; pip install 'stillroom\[ray\]'$"):
        RayPool("auto")


def test_importing_the_pool_imports_no_ray():
    code = "import sys, tasks.ray_pool; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "False\n"
