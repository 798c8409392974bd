"""Building a recipe: one `Build` holds what a run decided, and tells listeners, the log and Prefect how it goes.

Prefect is imported only when something has to run: a build that reuses everything says so at once.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flows.events import Event, Note, StageDone, StageFailed, StageProgress, StageStarted
from flows.plan import Plan, Planned, make_plan
from flows.publish import Published, publish_build, published_before
from schemas.checks import RowCount
from schemas.recipe import Require
from stillroom.errors import StageError, StillroomError
from stillroom.records import Record, TableRef
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.runs import begin_run, end_run
from tasks.pool import Pool
from tasks.specs import StageSpec

if TYPE_CHECKING:
    from flows.artifacts import ProgressBar
    from tasks.stage import StageCall

__all__ = ["Build", "BuildResult", "build_recipe", "current_build"]

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build came to: the snapshot's name or None, a line a stage, the proof, the report's path."""

    snapshot: str | None
    stages: list[dict[str, Any]]
    proof: dict[str, Any] | None
    report: str | None
    seconds: float
    reused_all: bool
    promoted: bool = False
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Build:
    """One run of a plan, from its first stage to the snapshot.

    Args:
        plan: what runs and what is reused.
        recipe: the recipe's path, for the command that goes on after a failure.
        workers: how many processes work; None means the cores.
        listener: told every event, from the thread of the stage that it is about.
    """

    def __init__(self, plan: Plan, recipe: str, *, workers: int | None = None, listener: Listener | None = None) -> None:
        self.plan, self.recipe, self.store = plan, recipe, Store(plan.store)
        self.workers, self._listener = workers or len(os.sched_getaffinity(0)), listener
        self.records: dict[str, Record] = {stage.name: stage.record for stage in plan.stages if stage.record}
        self.lines: dict[str, dict[str, Any]] = {}
        self._started, self._lock = time.perf_counter(), threading.Lock()
        self._pool: Pool | None = None
        self._units: dict[str, dict[str, tuple[float, float]]] = {}
        self._names = {stage.prints.table: stage.name for stage in plan.stages}
        self._run = ""
        self._bars: dict[str, ProgressBar] = {}

    @classmethod
    def of(cls, recipe: str, store: str, overrides: Sequence[str], *, rows: int | None = None, until: str | None = None, workers: int | None = None) -> "Build":
        """Plan a recipe and make the build of it."""
        return cls(make_plan(recipe, store, overrides, rows, until), recipe, workers=workers)

    def __enter__(self) -> "Build":
        fingerprints = {stage.name: stage.prints.table for stage in self.plan.stages}
        self._run = begin_run(self.store, self.plan.graph.recipe.name, fingerprints, self._command())
        return self

    def _command(self) -> str:
        """The command that goes on with this build, from any folder."""
        words = ["stillroom", "build", str(Path(self.recipe).absolute()), "--store", self.plan.store]
        words += [word for override in self.plan.graph.recipe.overrides for word in ("--set", override)]
        words += ["--rows", str(self.plan.graph.rows)] if self.plan.graph.rows else []
        words += ["--until", self.plan.until] if self.plan.until else []
        return shlex.join(words)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()
        stage = error.args[0] if isinstance(error, StageError) else None
        end_run(self.store, self._run, "Failed" if error else "Completed", stage=stage, message=str(error) if error else "")

    def call(self, planned: Planned) -> "StageCall":
        """What the stage's task needs."""
        from tasks.stage import StageCall

        return StageCall(
            record=planned.record,
            spec=lambda tables: self._spec(planned, tables),
            pool=self.pool,
            begun=lambda: self._begun(planned),
            ended=lambda record, reused: self._ended(planned, record, reused),
        )

    def pool(self) -> Pool:
        """The build's pool, started when first asked for."""
        with self._lock:
            if self._pool is None:
                self._pool = Pool(self.workers, self._progress)
            return self._pool

    def finish(self) -> BuildResult:
        """Pass the gates, publish, and say what came of it."""
        published = Published()
        if self.plan.graph.recipe.publish is not None and self.plan.until is None:
            self.tell(StageStarted("publish", "gates, snapshot, report"))
            begun = time.perf_counter()
            published = publish_build(self.plan, self.records, list(self.lines.values()), self.pool(), time.perf_counter() - self._started)
            self.tell(StageDone("publish", "Reused" if published.same else "Built", published.rows, seconds=round(time.perf_counter() - begun, 2)))
            for note in published.notes:
                self.tell(Note(note))
            self._show_outcome(published)
        return self._result(published, reused_all=not self.plan.running and published.same)

    def _show_outcome(self, published: Published) -> None:
        """Leave the rows of all stages, the proof and the report's place in the Prefect UI."""
        from flows.artifacts import proof_artifact, report_link_artifact, rows_artifact

        rows_artifact([self._row_line(stage.name) for stage in self.plan.stages if stage.name in self.lines])
        if published.proof:
            proof_artifact(published.proof)
        if published.report and published.snapshot:
            report_link_artifact(published.report, published.snapshot)

    def failed(self, error: StillroomError) -> None:
        """Tell the listener which stage failed."""
        if isinstance(error, StageError):
            self.tell(StageFailed(error.args[0], str(error)))

    def tell(self, event: Event) -> None:
        """Tell the listener."""
        if self._listener:
            self._listener(event)

    def _spec(self, planned: Planned, tables: dict[str, TableRef]) -> StageSpec:
        known = {name: record.table for name, record in self.records.items()} | tables
        missing = [edge.stage for edge in planned.resolved.inputs.values() if edge.stage not in known]
        for name in missing:
            raise StageError(planned.name, f"its input '{name}' is not there", "build the recipe again")
        return self.plan.spec(planned, known)

    def _begun(self, planned: Planned) -> None:
        from flows.artifacts import ProgressBar

        self._bars[planned.name] = ProgressBar(planned.name)
        self.tell(StageStarted(planned.name, planned.op))

    def _ended(self, planned: Planned, record: Record, reused: bool) -> None:
        publish = self.plan.graph.recipe.publish
        _check(planned, record, publish.require if publish else Require(), self.store)
        self.records[planned.name] = record
        counts = record.counts
        line = StageDone(
            planned.name,
            "Reused" if reused else "Built",
            record.table.rows,
            counts.get("dropped", 0),
            counts.get("rejected", 0),
            0.0 if reused else record.seconds,
        )
        self.lines[planned.name] = {"op": planned.op, "hidden": planned.hidden, **asdict(line)}
        self.tell(line)
        if not reused:
            self._show(planned, record)

    def _show(self, planned: Planned, record: Record) -> None:
        """Leave a stage's rows and some of its pictures in the Prefect UI."""
        from flows.artifacts import rows_artifact, sample_groups, samples_artifact

        self._bars[planned.name].finish()
        rows_artifact([self._row_line(planned.name)], planned.name)
        if planned.resolved.operator.gives == "samples" and not planned.hidden:
            removed = StoredTable(self.store, record.removed) if record.removed else None
            inputs = [StoredTable(self.store, self.records[edge.stage].table) for edge in planned.resolved.inputs.values() if edge.stage in self.records]
            samples_artifact(
                planned.name, sample_groups(StoredTable(self.store, record.table), removed, [table for table in inputs if "image" in table.schema.names])
            )

    def _row_line(self, name: str) -> dict[str, Any]:
        counts = self.records[name].counts
        return {**self.lines[name], "in": counts.get("in", counts.get("planned", 0)), "out": self.records[name].table.rows, "merged": counts.get("merged", 0)}

    def _progress(self, key: str, unit: str, done: float, total: float) -> None:
        name = self._names.get(key)
        if name is None:
            return
        units = self._units.setdefault(name, {})
        units[unit] = (done, total)
        so_far, whole = sum(d for d, _ in units.values()), sum(t for _, t in units.values())
        self.tell(StageProgress(name, so_far, whole))
        if name in self._bars:
            self._bars[name].update(so_far, whole)

    def _result(self, published: Published, *, reused_all: bool) -> BuildResult:
        lines = [self.lines[stage.name] for stage in self.plan.stages if stage.name in self.lines]
        return BuildResult(
            published.snapshot,
            lines,
            published.proof,
            published.report,
            round(time.perf_counter() - self._started, 2),
            reused_all,
            published.promoted,
            published.notes,
        )


_current: ContextVar[Build | None] = ContextVar("stillroom_build", default=None)


def current_build() -> Build | None:
    """The build that this thread's flow was started for, or None in a deployment."""
    return _current.get()


def build_recipe(
    recipe: str | Path, store: str | Path, overrides: Sequence[str] = (), *, rows: int | None = None, until: str | None = None, workers: int | None = None,
    listener: Listener | None = None, rehash: bool = False,
) -> BuildResult:  # fmt: skip
    """Build a recipe as one Prefect flow run, or say that everything is there.

    Args:
        recipe: its file.
        store: where the tables go.
        overrides: `stage.parameter=value`, as after `--set`.
        rows: a trial on a stratified sample of so many rows of each source; never promoted.
        until: build only what this stage needs, publish nothing.
        workers: how many processes work; the result doesn't depend on it.
        listener: told how it goes.
        rehash: read source files again even if they look unchanged.

    Raises:
        StillroomError: a fault of the recipe, a stage that failed, a gate that refused.
    """
    made = Build(make_plan(recipe, store, overrides, rows, until, rehash=rehash), str(recipe), workers=workers, listener=listener)
    if not made.plan.running:
        published = Published() if until or made.plan.graph.recipe.publish is None else published_before(made.plan, made.records)
        if published is not None:
            for planned in made.plan.stages:
                made._ended(planned, made.records[planned.name], True)
            return made._result(published, reused_all=True)
    from flows.server import ensure_server

    ensure_server(say=lambda text: made.tell(Note(text)))
    from flows.flow import build

    token = _current.set(made)
    try:
        result: dict[str, Any] = build(str(recipe), str(made.plan.store), list(overrides), rows, until, workers)
    finally:
        _current.reset(token)
    return BuildResult(**result)


def _check(planned: Planned, record: Record, require: Require, store: Store) -> None:
    """Refuse a stage with too many rejected rows, or with none left."""
    counts = record.counts
    came = counts.get("planned", counts.get("in", 0))
    rejected = counts.get("rejected", 0)
    if came and rejected / came > require.max_rejects:
        raise StageError(
            planned.name,
            f"{rejected:,} of {came:,} rows were rejected, more than max_rejects {require.max_rejects:.1%} allows{_example(record, store)}",
            "mend the source, or raise publish.require.max_rejects",
        )
    empty_is_fine = any(isinstance(check, RowCount) and check.rows.min == 0 for check in require.checks)
    if planned.resolved.operator.gives == "samples" and not record.table.rows and not empty_is_fine:
        raise StageError(
            planned.name, "no row is left" if came else "nothing came in", "loosen it, or allow it with publish.require.checks: [{rows: {min: 0}}]"
        )


def _example(record: Record, store: Store) -> str:
    """The first reasons of rejected rows, for the error's text."""
    if record.removed is None:
        return ""
    removed = StoredTable(store, record.removed).frame(["source", "reason", "kind"])
    first = [f"{row['source'] or 'a row'}: {row['reason']}" for row in removed.iter_rows(named=True) if row["kind"] == "rejected"][:2]
    return f" ({'; '.join(first)})"
