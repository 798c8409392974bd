"""Builds in this process, without Prefect and workers: the same run log, plan, engine and publishing, in a tenth of the time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.plan import Plan, plan_graph
from flows.publish import Published, publish_build
from flows.resolve import resolve
from stillroom.records import Record
from stillroom.stores import Store
from storage.alive import let_go, this_process
from storage.runs import begin_run, end_run, note_run
from tasks.engine import obtain_stage
from tasks.pool import Job

__all__ = ["Inline", "Killed", "build"]


class Killed(BaseException):
    """As a process ends that gets no word in any more."""


class Inline:
    """A pool whose work is done here."""

    workers, stopped = 1, False

    def run(self, jobs: Sequence[Job], *, stage: str, retries: int = 2, on_result: Callable[[int, Any], None] | None = None) -> list[Any]:
        results = []
        for index, job in enumerate(jobs):
            results.append(job.fn(*job.args))
            if on_result:
                on_result(index, results[index])
        return results


def build(recipe: Path, store: Path, overrides: Sequence[str] = ()) -> tuple[Plan, dict[str, bool], Published | None]:
    """As `flows.build.build_recipe` does it: the plan, for each stage whether it was made now, and what was published.

    Killed, it leaves the log as a dead process would.
    """
    pool: Any = Inline()
    home, graph = Store(store), resolve(recipe, overrides)
    run = begin_run(home, graph.recipe.name, {}, f"stillroom build {recipe}")
    try:
        plan = plan_graph(graph, home)
        note_run(home, run, fingerprints={stage.name: stage.prints.table for stage in plan.stages})
        records: dict[str, Record] = {stage.name: stage.record for stage in plan.stages if stage.record}
        made: dict[str, bool] = {}
        for stage in plan.stages:
            if stage.record is None:
                spec = plan.spec(stage, {name: record.table for name, record in records.items()})
                records[stage.name], made[stage.name] = obtain_stage(spec, pool)
            else:
                made[stage.name] = False
        published = publish_build(plan, records, pool, 1.0) if graph.recipe.publish else None
    except Killed:
        note_run(home, run, holder={**this_process(), "pid": 2**22 + 1})
        let_go(home)
        raise
    except BaseException as error:
        end_run(home, run, "Failed", message=str(error))
        raise
    end_run(home, run, "Completed")
    return plan, made, published
