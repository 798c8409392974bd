"""The one Prefect task: a stage, taken from the store where it is there, else run by the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from stillroom.records import Record, TableRef
from tasks.engine import obtain_stage
from tasks.pool import Pool
from tasks.specs import StageSpec

__all__ = ["StageCall", "stage"]


@dataclass(frozen=True)
class StageCall:
    """A stage as the flow hands it over.

    Args:
        record: what the store has of it already.
        spec: makes the engine's spec, given the tables of the stages that it reads.
        pool: the build's pool, made when the first stage needs it.
        begun, ended: told when it starts and with which record it ends; `ended` may refuse the record.
        waiting: told which other build is waited for, where one makes the same stage.
    """

    record: Record | None
    spec: Callable[[dict[str, TableRef]], StageSpec]
    pool: Callable[[], Pool]
    begun: Callable[[], None]
    ended: Callable[[Record, bool], None]
    waiting: Callable[[str], None]


# Whether a result exists is the store's word, not Prefect's cache's.
@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
def stage(name: str, call: StageCall, tables: dict[str, TableRef]) -> State[Any]:
    """Have a stage's table: state `Reused` where the store had it, `Built` where it was made now."""
    if call.record is not None:
        call.ended(call.record, True)
        return Completed(name="Reused", message=f"fingerprint {call.record.fingerprint[:12]}", data=call.record.table)
    call.begun()
    record, made_here = obtain_stage(call.spec(tables), call.pool(), call.waiting)
    call.ended(record, not made_here)
    told = f"{record.table.rows:,} rows, fingerprint {record.fingerprint[:12]}"
    return Completed(name="Built" if made_here else "Reused", message=told if made_here else f"{told}, made by another build", data=record.table)
