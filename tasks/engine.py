"""The engine: runs one stage over the pool, in partitions or units, and leaves its record.

Finished partitions and units wait as small objects under `work/<fingerprint>/`, so that a build
that was stopped takes them over. The record is the commit: until it is there, nobody sees a row.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import pyarrow as pa

from stillroom import registry
from stillroom.errors import StageError
from stillroom.fields import heavy_names
from stillroom.format import prepare
from stillroom.integrity import changed_sizes
from stillroom.operators import Operator, Unit
from stillroom.records import Record, TableRef, read_record, record_key
from stillroom.stored import StoredTable, physical_schema, with_hashes
from stillroom.stores import Store
from storage.commits import commit_fragments, data_files, pin, version_facts
from storage.leases import Halted, Waiting, lease
from storage.records import put_record
from storage.space import room_for
from tasks import jobs
from tasks.earlier import find_earlier, keep_units, note_latest
from tasks.environment import environment
from tasks.needs import bytes_needed
from tasks.pool import Job, Pool
from tasks.specs import REMOVED_SCHEMA, Part, StageSpec

__all__ = ["Made", "obtain_stage", "partitions", "run_stage"]

# A stage of few rows has eight partitions, one of many at most 256: each is a job, which opens the table, and a fragment of the next.
MIN_PARTITION, MAX_PARTITION, PARTITIONS, MOST_PARTITIONS = 256, 4096, 8, 256
_locks: dict[tuple[str, str], threading.Lock] = {}
_locks_lock = threading.Lock()


class Made(NamedTuple):
    """A stage's record, and whether this build made it."""

    record: Record
    here: bool


def run_stage(spec: StageSpec, pool: Pool) -> Record:
    """The record of a stage, made now unless it is there; as `obtain_stage`."""
    return obtain_stage(spec, pool).record


def obtain_stage(spec: StageSpec, pool: Pool, waiting: Waiting = lambda holder: None) -> Made:
    """Run a stage unless its record is there, or another build makes it meanwhile.

    Args:
        spec: the stage.
        pool: does the work.
        waiting: told once which other build is waited for.

    Returns:
        The record, and whether it was made here.

    Raises:
        StageError: what the operator or the data did wrong, in one line.
    """
    store = Store(spec.store)
    try:
        return _once(spec, spec.fingerprint, pool, waiting, lambda: _run(spec, pool, store, waiting))
    except Halted:
        raise StageError(spec.stage, "the build was stopped") from None
    except StageError as error:
        if error.args[0] != spec.operator:
            raise
        raise StageError(spec.stage, *error.args[1:]) from None  # an operator doesn't know what its stage is called


def _once(spec: StageSpec, fingerprint: str, pool: Pool, waiting: Waiting, make: Callable[[], Record]) -> Made:
    """The record of a fingerprint: of all threads and builds that need it, one makes it while the others wait.

    A build that was taken for dead and goes on may work beside its heir. The first record counts, and
    who is first clears `work/` away: the other may miss its files there, and then finds the record.
    """
    store = Store(spec.store)

    def done() -> bool:
        return store.read(record_key(fingerprint)) is not None

    with _alone(spec.store, fingerprint):
        if found := read_record(store, fingerprint):
            return Made(found, False)
        with lease(store, fingerprint, f"stage {spec.stage}", done=done, waiting=waiting, halted=lambda: pool.stopped):
            if found := read_record(store, fingerprint):
                return Made(found, False)
            try:
                return Made(make(), True)
            except Exception:
                if (found := read_record(store, fingerprint)) is None:
                    raise
                _give_way(store, found)
                return Made(found, False)


def _give_way(store: Store, record: Record) -> None:
    """Leave the field to the build that was first: its versions get their tags back, and unfinished work of this one goes."""
    for ref in filter(None, (record.table, record.removed)):
        pin(store, ref)
    store.delete(f"work/{record.fingerprint}/")


def _run(spec: StageSpec, pool: Pool, store: Store, waiting: Waiting) -> Record:
    started = time.perf_counter()
    prepare(store)
    operator = registry.load(spec.operator)
    with room_for(store, spec.stage, bytes_needed(spec, operator)):
        if operator.shape == "row":
            parts = _run_row(spec, pool, store)
        elif operator.shape == "select":
            parts = pool.run([Job(jobs.select_job, (spec,))], stage=spec.stage, retries=spec.retries)
        elif operator.shape == "source":
            parts = _run_source(spec, pool, store)
        elif operator.shape == "score":
            parts = _run_score(spec, operator, pool, store, waiting)
        else:
            parts = _run_units(spec, pool, store)
        return _record(spec, _made_here(operator, spec), parts, pool, store, started)


@contextmanager
def _alone(store: str, fingerprint: str) -> Iterator[None]:
    """Let one thread at a time work on a fingerprint: equal stages of a recipe share their unfinished work."""
    with _locks_lock:
        lock = _locks.setdefault((store, fingerprint), threading.Lock())
    with lock:
        yield


def partitions(rows: int) -> list[tuple[int, int]]:
    """The bounds of a row operator's partitions; they depend on the number of rows alone."""
    size = max(-(-rows // MOST_PARTITIONS), min(MAX_PARTITION, max(MIN_PARTITION, -(-rows // PARTITIONS))))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _run_row(spec: StageSpec, pool: Pool, store: Store) -> list[Part]:
    first = next(iter(spec.inputs.values()))
    bounds = partitions(StoredTable(store, first).rows)
    earlier = _earlier(spec, bounds, pool, store)
    todo = [(f"{start}-{stop}", Job(jobs.row_job, (spec, start, stop, earlier))) for start, stop in bounds]
    return _resumable(spec, todo, pool, store)


def _earlier(spec: StageSpec, bounds: list[tuple[int, int]], pool: Pool, store: Store) -> TableRef | None:
    """The table of an earlier build from which unchanged rows are taken over, once it is noted which; an operator that sees its peers takes none."""
    operator = registry.load(spec.operator)
    found = None if operator.sees_peers(operator.params.model_validate(spec.params)) else find_earlier(spec, store)
    if found is None:
        return None
    (matched,) = pool.run([Job(jobs.match_job, (spec, found, bounds))], stage=spec.stage, retries=spec.retries)
    return found.record.table if matched else None


def _run_source(spec: StageSpec, pool: Pool, store: Store) -> list[Part]:
    units = _units(spec, pool)
    if any(unit.key for unit in units) and (earlier := find_earlier(spec, store)):
        pool.run([Job(jobs.take_units_job, (spec, units, earlier.record))], stage=spec.stage, retries=spec.retries)
    parts = _resumable(spec, [(unit.name, Job(jobs.source_job, (spec, unit, {}), unit.threads)) for unit in units], pool, store)
    (excluded,) = pool.run([Job(jobs.duplicates_job, (spec, [unit.name for unit in units]))], stage=spec.stage)
    # Names of their own: the first pass stays noted as it is, for a build that is stopped in the second.
    again = [unit for unit in units if unit.name in excluded]
    todo = [(f"again/{unit.name}", Job(jobs.source_job, (spec, unit, excluded[unit.name]), unit.threads)) for unit in again]
    redone = dict(zip([unit.name for unit in again], _resumable(spec, todo, pool, store), strict=True))
    parts = [redone.get(unit.name, part) for unit, part in zip(units, parts, strict=True)]
    keep_units(spec, store, units, parts, excluded)
    return parts


def _run_units(spec: StageSpec, pool: Pool, store: Store) -> list[Part]:
    units = _units(spec, pool)
    finished = _resumable(spec, [(unit.name, Job(jobs.unit_job, (spec, unit), unit.threads)) for unit in units], pool, store)
    (gathered,) = pool.run([Job(jobs.rows_job, (spec, [unit.name for unit in units]))], stage=spec.stage)
    return [replace(gathered, metrics=_merged_metrics([*finished, gathered]))]


def _run_score(spec: StageSpec, operator: Operator, pool: Pool, store: Store, waiting: Waiting) -> list[Part]:
    """A score's columns have a record of their own, which a new column upstream leaves valid."""

    def make() -> Record:
        started = time.perf_counter()
        parts = _run_units(spec, pool, store)
        names = [field for field in spec.schema if field.name in _added(operator, spec)]
        logical = with_hashes(pa.schema([pa.field("sample_id", pa.string()), *names]))
        own = replace(spec, fingerprint=spec.scores_fingerprint, parts=spec.scores_parts, table=f"{spec.table}.scores", schema=logical)
        return _record(own, heavy_names(logical), parts, pool, store, started)

    scores = _once(spec, spec.scores_fingerprint, pool, waiting, make).record
    (joined,) = pool.run([Job(jobs.join_job, (spec, scores.table))], stage=spec.stage)
    return [replace(joined, metrics=scores.metrics)]


def _units(spec: StageSpec, pool: Pool) -> list[Unit]:
    (units,) = pool.run([Job(jobs.list_units_job, (spec,))], stage=spec.stage, retries=spec.retries)
    names = [unit.name for unit in units]
    if len(set(names)) != len(names):
        raise StageError(spec.stage, f"operator '{spec.operator}' names two units alike", "every unit needs a name of its own")
    return list(units)


def _resumable(spec: StageSpec, todo: Sequence[tuple[str, Job]], pool: Pool, store: Store) -> list[Part]:
    """Run what an earlier, unfinished build did not finish; take the rest over."""
    parts = {name: part for name, _ in todo if (part := _finished(spec, name, store))}
    missing = [(name, job) for name, job in todo if name not in parts]

    def keep(index: int, part: Part) -> None:
        store.put_json(f"{spec.work}/{missing[index][0]}.json", asdict(part))

    results = pool.run([job for _, job in missing], stage=spec.stage, retries=spec.retries, on_result=keep)
    parts |= {name: part for (name, _), part in zip(missing, results, strict=True)}
    return [parts[name] for name, _ in todo]


def _finished(spec: StageSpec, name: str, store: Store) -> Part | None:
    value = store.read_json(f"{spec.work}/{name}.json")
    if value is None:
        return None
    part = Part(**value)
    # A build of another recipe may have begun the same work: its fragments lie in its own table.
    ours = {*data_files(spec.table, part.fragments), *data_files(spec.removed, part.removed)} <= part.files.keys()
    return part if ours and not changed_sizes(store, part.files) else None


def _record(spec: StageSpec, made_here: Sequence[str], parts: Sequence[Part], pool: Pool, store: Store, started: float) -> Record:
    counts = _account(spec, parts)
    taken = counts.pop("taken", 0)
    schema = physical_schema(spec.schema, made_here)
    table = commit_fragments(store, spec.table, schema, [text for part in parts for text in part.fragments], fingerprint=spec.fingerprint)
    gone = [text for part in parts for text in part.removed]
    removed = commit_fragments(store, spec.removed, REMOVED_SCHEMA, gone, fingerprint=spec.fingerprint) if gone else None
    (tally,) = pool.run([Job(jobs.tally_job, (spec.store, table, [part.tally for part in parts]))], stage=spec.stage)
    if not tally["unique"]:
        raise StageError(spec.stage, "two rows have the same sample id", "a filter.exact_duplicates before, or table.mix, which drops the second")
    known = {key: facts for part in parts for key, facts in part.files.items()}
    files = version_facts(store, [table, removed] if removed else [table], known)
    record = Record(
        fingerprint=spec.fingerprint, stage=spec.stage, operator=spec.operator, parts=spec.parts, table=replace(table, digest=tally["digest"]), removed=removed,
        counts=counts, columns=tally["columns"], files=files, origins=tally["origins"], environment=environment(), metrics=_merged_metrics(parts),
        seconds=round(time.perf_counter() - started, 3), taken=taken,
    )  # fmt: skip
    if registry.load(spec.operator).shape in ("row", "source"):
        note_latest(spec, store)  # before the record: a build that is killed after that never comes here again
    record = put_record(store, record, tally["leaves"])
    if record.table.version != table.version:
        _give_way(store, record)
    store.delete(f"work/{spec.fingerprint}/")
    return record


def _account(spec: StageSpec, parts: Sequence[Part]) -> dict[str, int]:
    """Add the parts' counts up; every row that came in must have come out or left with a reason."""
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.counts.items():
            counts[name] = counts.get(name, 0) + count
    came = counts.get("planned", counts.get("in"))
    went = sum(counts.get(name, 0) for name in ("out", "dropped", "rejected", "merged", "forgotten"))
    if came is not None and came != went:
        raise StageError(spec.stage, f"{came} rows came in and {went} are accounted for", f"operator '{spec.operator}' loses rows")
    return counts


def _merged_metrics(parts: Sequence[Part]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.metrics.items()}


def _made_here(operator: Operator, spec: StageSpec) -> list[str]:
    """The heavy columns that this stage's own table holds: a score's lie in its table of columns."""
    if operator.shape == "score":
        return []
    if operator.shape in ("source", "train", "measure"):
        return heavy_names(spec.schema)
    added = _added(operator, spec)
    return [name for name in heavy_names(spec.schema) if name in added]


def _added(operator: Operator, spec: StageSpec) -> set[str]:
    params = operator.params.model_validate(spec.params)
    store = Store(spec.store)
    return set(operator.added(params, {name: StoredTable(store, ref).schema for name, ref in spec.inputs.items()}))
