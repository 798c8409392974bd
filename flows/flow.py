"""The Prefect flow: plan, then every stage as soon as its inputs are there, then publish.

Deployments run it by its module path, `flows.flow.build`; `flows.build.build_recipe` runs it for a person.
"""

from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.futures import PrefectFuture, wait
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.artifacts import plan_artifact
from flows.build import Build, current_build
from flows.server import public_url
from stillroom.errors import StageError, StillroomError
from tasks.stage import stage

__all__ = ["build"]


# Stages wait for each other and for the pool, so a thread each costs nothing.
_THREADS: Any = ThreadPoolTaskRunner(max_workers=64)


def _name() -> str:
    return Path(str(runtime.flow_run.parameters["recipe"])).stem


@flow(name="stillroom-build", flow_run_name=_name, task_runner=_THREADS, persist_result=False, result_serializer="json", validate_parameters=True)
def build(
    recipe: str, store: str, overrides: list[str] | None = None, rows: int | None = None, until: str | None = None, workers: int | None = None,
    cluster: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the stages that the store lacks, in topological order, each as soon as its inputs are there."""
    made = current_build() or Build(recipe, store, overrides or [], rows=rows, until=until, workers=workers, cluster=cluster)
    try:
        with made:
            made.watch(str(runtime.flow_run.id), public_url(str(PREFECT_API_URL.value())))
            plan_artifact([{name: getattr(planned, name) for name in ("name", "op", "reuse", "reason", "rows")} for planned in made.plan.stages])
            submit: Any = stage.submit
            futures: dict[str, PrefectFuture[Any]] = {}
            for planned in made.plan.stages:
                # Prefect waits for the futures inside this dict: they are the edges of the DAG.
                tables = {edge.stage: futures[edge.stage] for edge in planned.resolved.inputs.values() if edge.stage in futures}
                futures[planned.name] = submit(planned.name, quote(made.call(planned)), tables)
            wait(list(futures.values()))
            _raise_first(futures)
            return made.finish().as_dict()
    except StillroomError as error:
        made.failed(error)
        raise


def _raise_first(futures: dict[str, PrefectFuture[Any]]) -> None:
    for name, future in futures.items():
        if future.state.is_failed() or future.state.is_crashed():
            error = future.state.result(raise_on_failure=False)
            if isinstance(error, StillroomError):
                raise error if isinstance(error, StageError) else StageError(name, str(error))
            if isinstance(error, BaseException):
                raise error
