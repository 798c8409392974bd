"""Builds in this process, without Prefect and workers, and with a death at any write: what tests of long sequences can afford."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.dataset import Tags

from flows.plan import Plan, plan_graph
from flows.publish import Published, publish_build
from flows.resolve import resolve
from stillroom.records import Record
from stillroom.stores import Store
from storage import alive, commits, leases, runs
from storage.runs import begin_run, end_run, note_run
from tasks.engine import obtain_stage
from tasks.pool import Job

__all__ = ["Built", "Inline", "Killed", "build", "dying"]


class Killed(BaseException):
    """As a process ends that gets no word in any more."""


@dataclass
class Inline:
    """A pool whose work is done here; `ran` are the stages that had any."""

    workers: int = 1
    stopped: bool = False
    ran: set[str] = field(default_factory=set)

    def run(self, jobs: Sequence[Job], *, stage: str, retries: int = 2, on_result: Callable[[int, Any], None] | None = None) -> list[Any]:
        results = []
        for index, job in enumerate(jobs):
            self.ran.add(stage)
            results.append(job.fn(*job.args))
            if on_result:
                on_result(index, results[index])
        return results


@dataclass(frozen=True)
class Built:
    """What came of a build: its plan, the stages that had work done, the records, what was published."""

    plan: Plan
    ran: set[str]
    records: dict[str, Record]
    published: Published | None


def build(recipe: Path, store: Path, overrides: Sequence[str] = (), until: str | None = None) -> Built:
    """As `flows.build.build_recipe` does it: the same run log, plan, engine and publishing."""
    pool: Any = Inline()
    home, graph = Store(store), resolve(recipe, overrides)
    run = begin_run(home, graph.recipe.name, {}, f"stillroom build {recipe}")
    try:
        plan = plan_graph(graph, home, until)
        note_run(home, run, fingerprints={stage.name: stage.prints.table for stage in plan.stages})
        records: dict[str, Record] = {stage.name: stage.record for stage in plan.stages if stage.record}
        for stage in plan.stages:
            if stage.record is None:
                records[stage.name] = obtain_stage(plan.spec(stage, {name: record.table for name, record in records.items()}), pool).record
        published = publish_build(plan, records, pool, 1.0) if graph.recipe.publish and until is None else None
    except Exception as error:
        end_run(home, run, "Failed", message=str(error))
        raise
    end_run(home, run, "Completed")
    return Built(plan, pool.ran - {"publish"}, records, published)


@contextmanager
def dying(store: Path, writes: int | None) -> Iterator[list[str]]:
    """Kill whoever works on a store at its write number `writes` (None: never), an odd one before, an even one after it was done.

    Writes are those of objects, data files, versions and tags, and deletions. From then on the dead writes nothing, so
    that leases, beats and the run's log are left as a SIGKILL would leave them. Yields the writes that were made.
    """
    done: list[str] = []
    dead = [False]

    def mortal(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            if dead[0]:
                if name == "remove":
                    return None
                raise Killed
            done.append(name)
            dead[0] = len(done) == writes
            if dead[0] and len(done) % 2:
                raise Killed
            result = function(*args, **kwargs)
            if dead[0]:
                raise Killed
            return result

        return called

    # To everybody else the process is one that has ended: as it will be once it is dead.
    ended = {**alive.this_process(), "started": 1}
    with pytest.MonkeyPatch.context() as patch:
        for module in (leases, runs):
            patch.setattr(module, "this_process", lambda: ended)
        for owner, name in ((Store, "put"), (Store, "create"), (Store, "remove"), (Tags, "create"), (Tags, "update")):
            patch.setattr(owner, name, mortal(getattr(owner, name), name))
        patch.setattr(lance.LanceDataset, "commit", staticmethod(mortal(lance.LanceDataset.commit, "commit")))
        patch.setattr(commits, "write_fragments", mortal(commits.write_fragments, "write"))
        try:
            yield done
        finally:
            if dead[0] and (heart := alive._hearts.pop(Store(store).uri, None)):
                heart._stopped.set()
