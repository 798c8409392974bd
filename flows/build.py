"""Building a recipe: one `Build` holds what a run decided, and tells listeners, the log and Prefect how it goes.

Prefect is imported only when something has to run: a build that reuses everything says so at once.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flows.events import Event, Note, StageDone, StageFailed, StageProgress, StageStarted, StageWaiting
from flows.plan import Plan, Planned, plan_graph
from flows.publish import Published, publish_build, published_before
from flows.resolve import resolve
from flows.rows import check_rows
from schemas.recipe import Require
from stillroom.disk import is_full
from stillroom.errors import StageError, StillroomError
from stillroom.format import require_format
from stillroom.records import Record, TableRef
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.leases import lease
from storage.runs import begin_run, drop_run, end_run, note_run
from storage.space import full_disk
from tasks.specs import StageSpec

if TYPE_CHECKING:
    from flows.artifacts import ProgressBar
    from flows.crashes import Witness
    from tasks.pool import Pool
    from tasks.stage import StageCall

__all__ = ["Build", "BuildResult", "build_recipe", "current_build"]

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build came to: the snapshot's name or None, a line a stage, the proof, the judged small sets, the report's path."""

    snapshot: str | None
    stages: list[dict[str, Any]]
    proof: dict[str, Any] | None
    report: str | None
    seconds: float
    reused_all: bool
    promoted: bool = False
    notes: list[str] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Build:
    """One run of a recipe, from its plan to the snapshot.

    Args:
        recipe: its file.
        store: where the tables go.
        overrides: `stage.parameter=value`, as after `--set`.
        rows: a trial on a stratified sample of so many rows of each source.
        until: build only what this stage needs, publish nothing.
        workers: how many processes work; None means the cores.
        cluster: the address of a Ray cluster that works instead; None takes that of STILLROOM_RAY_ADDRESS, if it is set.
        rehash: read source files again even if they look unchanged.
        listener: told every event, from the thread of the stage that it is about.

    Raises:
        StillroomError: a fault of the recipe.
    """

    def __init__(
        self, recipe: str, store: str | Path, overrides: Sequence[str] = (), *, rows: int | None = None, until: str | None = None, workers: int | None = None,
        cluster: str | None = None, rehash: bool = False, listener: Listener | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.store = recipe, Store(store)
        require_format(self.store)
        self.graph = resolve(recipe, overrides, rows)
        self.plan = Plan(self.graph, self.store.uri, [], until)
        self.workers, self.cluster = workers, cluster or os.environ.get("STILLROOM_RAY_ADDRESS") or None
        self._rehash, self._listener = rehash, listener
        self.records: dict[str, Record] = {}
        self.lines: dict[str, dict[str, Any]] = {}
        self._started, self._lock = time.perf_counter(), threading.Lock()
        self._pool: Pool | None = None
        self._units: dict[str, dict[str, tuple[float, float]]] = {}
        self._names: dict[str, str] = {}
        self._run = ""
        self._witness: Witness | None = None
        self._bars: dict[str, ProgressBar] = {}

    def begin(self) -> None:
        """Write the run down, wait for a gc that is at work, then plan: from now on, gc leaves alone what the plan counts on."""
        if self._run:
            return
        self._run = begin_run(self.store, self.graph.recipe.name, {}, self._command(), waiting=lambda who: self.tell(Note(f"waits for gc ({who})")))
        try:
            self.plan = plan_graph(self.graph, self.store, self.plan.until, rehash=self._rehash)
        except BaseException:
            self.forget()
            raise
        self.records = {stage.name: stage.record for stage in self.plan.stages if stage.record}
        self._names = {stage.prints.table: stage.name for stage in self.plan.stages}

    def forget(self) -> None:
        """Take the run out of the log: there was nothing to do."""
        drop_run(self.store, self._run)
        self._run = ""

    def __enter__(self) -> "Build":
        self.begin()
        prints = {stage.name: stage.prints.table for stage in self.plan.stages}
        scores = {f"{stage.name}.scores": stage.prints.scores for stage in self.plan.stages if stage.prints.scores}
        note_run(self.store, self._run, fingerprints=prints | scores)
        return self

    def watch(self, flow_run: str, api: str) -> None:
        """Have the flow run reported as crashed if this process is killed."""
        from flows.crashes import Witness

        note_run(self.store, self._run, flow_run={"id": flow_run, "api": api})
        self._witness = Witness(flow_run)

    def release(self) -> None:
        """The flow run is over."""
        if self._witness is not None:
            self._witness.release()

    def _command(self) -> str:
        """The command that goes on with this build, from any folder."""
        words = ["stillroom", "build", str(Path(self.recipe).absolute()), "--store", self.store.uri]
        words += [word for override in self.graph.recipe.overrides for word in ("--set", override)]
        words += ["--rows", str(self.graph.rows)] if self.graph.rows else []
        words += ["--until", self.plan.until] if self.plan.until else []
        words += ["--cluster", self.cluster] if self.cluster else []
        return shlex.join(words)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._run:
            return
        if self._pool is not None:
            # After an error nothing that still runs is of use: whoever stops a build doesn't wait for its jobs.
            self._pool.stop() if error else self._pool.close()
        try:
            end_run(self.store, self._run, "Failed" if error else "Completed", stage=_stage_of(error), message=_told(error))
        except Exception as unwritten:
            if error is None or not is_full(unwritten):
                raise
            # The disk is full, which `error` says already; the log will show a build that crashed.
        self._run = ""

    def call(self, planned: Planned) -> "StageCall":
        """What the stage's task needs."""
        from tasks.stage import StageCall

        return StageCall(
            record=planned.record,
            spec=lambda tables: self._spec(planned, tables),
            pool=self.pool,
            begun=lambda: self._begun(planned),
            ended=lambda record, reused: self._ended(planned, record, reused),
            waiting=lambda holder: self.tell(StageWaiting(planned.name, holder)),
        )

    def pool(self) -> "Pool":
        """The build's pool, started when first asked for."""
        with self._lock:
            if self._pool is None:
                self._pool = self._new_pool()
            return self._pool

    def _new_pool(self) -> "Pool":
        if self.cluster:
            from tasks.ray_pool import RayPool

            return RayPool(self.cluster, self.workers, self._progress, store=self.store)
        from tasks.pool import Pool

        return Pool(self.workers or len(os.sched_getaffinity(0)), self._progress)

    def finish(self) -> BuildResult:
        """Pass the gates, publish, and say what came of it."""
        published = Published()
        if self.plan.graph.recipe.publish is not None and self.plan.until is None:
            self.tell(StageStarted("publish", "gates, snapshot, report"))
            begun = time.perf_counter()
            with full_disk(self.store), self._publishing():
                published = publish_build(self.plan, self.records, self.pool(), time.perf_counter() - self._started)
            self.tell(StageDone("publish", "Reused" if published.same else "Built", published.rows, seconds=round(time.perf_counter() - begun, 2)))
            for note in published.notes:
                self.tell(Note(note))
            self._show_outcome(published)
        return self._result(published, reused_all=not self.plan.running and published.same)

    def _publishing(self) -> AbstractContextManager[Any]:
        """One build of a name publishes at a time: the next one finds what it did, and compares with what it promoted."""
        return lease(
            self.store, f"publish-{self.graph.recipe.name}", "publish", waiting=lambda holder: self.tell(StageWaiting("publish", holder)),
            halted=lambda: self.pool().stopped,
        )  # fmt: skip

    def _show_outcome(self, published: Published) -> None:
        """Leave the rows of all stages, the proof, judged small sets and the report's place in the Prefect UI."""
        from flows.artifacts import judged_artifact, proof_artifact, report_link_artifact, rows_artifact

        rows_artifact([self._row_line(stage.name) for stage in self.plan.stages if stage.name in self.lines])
        if published.proof:
            proof_artifact(published.proof)
        if published.judged:
            judged_artifact(published.judged)
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
        check_rows(planned, record, publish.require if publish else Require(), self.store)
        self.records[planned.name] = record
        counts = record.counts
        line = StageDone(
            planned.name,
            "Reused" if reused else "Built",
            record.table.rows,
            counts.get("dropped", 0),
            counts.get("rejected", 0),
            0.0 if reused else record.seconds,
            0 if reused else (counts.get("out", 0) if record.came_in is None else record.came_in) - record.taken,
            0 if reused else record.taken,
        )
        self.lines[planned.name] = {"op": planned.op, "hidden": planned.hidden, **asdict(line)}
        self.tell(line)
        if not reused:
            self._show(planned, record)
        elif planned.name in self._bars:  # another build made it meanwhile
            self._bars[planned.name].finish()

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
            published.judged,
        )


_current: ContextVar[Build | None] = ContextVar("stillroom_build", default=None)


def current_build() -> Build | None:
    """The build that this thread's flow was started for, or None in a deployment."""
    return _current.get()


def build_recipe(
    recipe: str | Path, store: str | Path, overrides: Sequence[str] = (), *, rows: int | None = None, until: str | None = None, workers: int | None = None,
    cluster: str | None = None, listener: Listener | None = None, rehash: bool = False,
) -> BuildResult:  # fmt: skip
    """Build a recipe as one Prefect flow run, or say that everything is there.

    Args:
        recipe: its file.
        store: where the tables go.
        overrides: `stage.parameter=value`, as after `--set`.
        rows: a trial on a stratified sample of so many rows of each source; never promoted.
        until: build only what this stage needs, publish nothing.
        workers: how many processes work; the result doesn't depend on it.
        cluster: the address of a Ray cluster whose nodes work instead of this machine; nor on that.
        listener: told how it goes.
        rehash: read source files again even if they look unchanged.

    Raises:
        StillroomError: a fault of the recipe, a stage that failed, a gate that refused.
    """
    made = Build(str(recipe), store, overrides, rows=rows, until=until, workers=workers, cluster=cluster, rehash=rehash, listener=listener)
    with full_disk(made.store):
        return _built(made, str(recipe), overrides)


def _built(made: Build, recipe: str, overrides: Sequence[str]) -> BuildResult:
    made.begin()
    try:
        if (result := _nothing_to_do(made)) is not None:
            return result
        from flows.crashes import tell_crashed
        from flows.server import ensure_server

        ensure_server(say=lambda text: made.tell(Note(text)))
        tell_crashed(made.store)
        return _as_flow(made, recipe, overrides)
    except BaseException as error:
        made.__exit__(type(error), error, error.__traceback__)  # does nothing where the flow has told it already
        raise
    finally:
        made.release()


def _nothing_to_do(made: Build) -> BuildResult | None:
    """The result of a build that finds everything there; None for one that has to run."""
    if made.plan.running:
        return None
    unpublished = made.plan.until or made.graph.recipe.publish is None
    published = Published() if unpublished else published_before(made.plan, made.records)
    if published is None:
        return None
    for planned in made.plan.stages:
        made._ended(planned, made.records[planned.name], True)
    made.forget()
    return made._result(published, reused_all=True)


def _as_flow(made: Build, recipe: str, overrides: Sequence[str]) -> BuildResult:
    from flows.flow import build

    token = _current.set(made)
    try:
        result: dict[str, Any] = build(recipe, made.store.uri, list(overrides), made.graph.rows, made.plan.until, made.workers, made.cluster)
    finally:
        _current.reset(token)
    return BuildResult(**result)


def _stage_of(error: BaseException | None) -> str | None:
    return str(error.args[0]) if isinstance(error, StageError) else None


def _told(error: BaseException | None) -> str:
    """What the log says of an error; of a signal, that it was one."""
    if error is None or isinstance(error, Exception):
        return str(error or "")
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by a signal"
