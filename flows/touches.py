"""How many rows a build will work on, stage by stage, as far as that can be known without running it.

A source is asked for its units, and those that an earlier build left are taken over. Where all inputs of
a row operator are there, its rows are compared as the build compares them, which opens tables. Of a
stage behind one that runs there is an upper bound at best.
"""

from dataclasses import dataclass
from typing import Literal

from flows.plan import Plan, Planned
from stillroom.operators import call
from stillroom.records import TableRef
from stillroom.stores import Store
from tasks.earlier import find_earlier, units_of
from tasks.specs import StageSpec

__all__ = ["Touch", "touches"]


@dataclass(frozen=True)
class Touch:
    """Of `of` rows that come into a stage, `rows` will be worked on; None where that isn't known.

    `bound` says what `rows` and `of` are. A source counts as `at least` where units are taken over: one of
    them is read again if a new file holds what it holds.
    """

    rows: int | None
    of: int | None
    bound: Literal["exactly", "at least", "at most"] = "exactly"

    def __str__(self) -> str:
        if self.rows is None:
            return "as many as come"
        return f"{'' if self.bound == 'exactly' else f'{self.bound} '}{self.rows:,}" + (f" of {self.of:,}" if self.of != self.rows else "")


def touches(plan: Plan) -> dict[str, Touch]:
    """For each stage that will run, how many rows it will work on."""
    store = Store(plan.store)
    stages = {stage.name: stage for stage in plan.stages}
    found: dict[str, Touch] = {}
    for stage in plan.running:
        if not stage.resolved.inputs:
            found[stage.name] = _of_source(plan, stage, store)
        else:
            found[stage.name] = _of_inputs(plan, stage, store, stages, found)
    return found


def _of_source(plan: Plan, stage: Planned, store: Store) -> Touch:
    operator = stage.resolved.operator
    if operator.units is None:
        return Touch(None, None)
    spec = plan.spec(stage, {})
    units = call(operator.units, {"params": stage.resolved.params, "inputs": {}})
    if not all(unit.stop > unit.start for unit in units):  # a stream, or a unit without a range of rows
        return Touch(None, None)
    earlier = find_earlier(spec, store) if any(unit.key for unit in units) else None
    known = units_of(spec, store, earlier.record) if earlier else {}
    new = sum(unit.stop - unit.start for unit in units if unit.key not in known)
    everything = sum(unit.stop - unit.start for unit in units)
    return Touch(new, everything, "exactly" if new == everything else "at least")


def _of_inputs(plan: Plan, stage: Planned, store: Store, stages: dict[str, Planned], found: dict[str, Touch]) -> Touch:
    edges = stage.resolved.inputs
    operator = stage.resolved.operator
    sources = [stages[edge.stage] for edge in edges.values()]
    by_rows = operator.shape == "row"
    # Rows flow through a select from all its inputs; elsewhere the others are models, or rows to check on.
    counted = edges if operator.shape == "select" else dict(list(edges.items())[:1])
    counts = [stages[edge.stage].rows if stages[edge.stage].record else found[edge.stage].of for edge in counted.values()]
    rows = None if None in counts else sum(count or 0 for count in counts)
    whole = all(stages[edge.stage].record and edge.split is None for edge in counted.values())
    spec = _spec(plan, stage, stages)
    earlier = find_earlier(spec, store) if by_rows and not operator.sees_peers(stage.resolved.params) else None
    if earlier is None:
        return Touch(rows, rows, "exactly" if whole else "at most")
    if all(source.record for source in sources):
        from tasks.jobs import count_new

        return Touch(*count_new(spec, earlier), "exactly")
    before = sources[0]
    if before.record or earlier.input is None or found[before.name].rows is None or before.resolved.operator.shape not in ("source", "row"):
        return Touch(rows, rows, "at most")
    # What is new in the input bounds what is new here, if the last build here was on what the input's last build left.
    last = find_earlier(_spec(plan, before, stages), store)
    fresh = found[before.name].rows if last and last.record.fingerprint == earlier.input.fingerprint and next(iter(edges.values())).split is None else rows
    return Touch(fresh, rows, "at most")


def _spec(plan: Plan, stage: Planned, stages: dict[str, Planned]) -> StageSpec:
    """The spec of a stage, its inputs as far as they are there: an earlier build is found by none of them."""
    tables = {edge.stage: stages[edge.stage].record for edge in stage.resolved.inputs.values()}
    return plan.spec(stage, {name: record.table if record else TableRef(name, 0, 0, "") for name, record in tables.items()})
