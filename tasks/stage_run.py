"""A stage as one job of a worker sees it: its operator, parameters and inputs, and where its rows go."""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stillroom import registry
from stillroom.draws import Draw
from stillroom.integrity import file_facts
from stillroom.operators import Operator, Params, Unit, Work, call
from stillroom.scratch import scratch_folder
from stillroom.stored import StoredTable, own_columns
from stillroom.stores import Store
from storage.commits import data_files, write_batches
from storage.tally import Tally
from tasks.pool import report_progress
from tasks.rows import Removed
from tasks.specs import REMOVED_SCHEMA, Part, StageSpec

__all__ = ["StageRun", "Written", "read_ipc", "to_ipc"]


class StageRun:
    """A stage as one job sees it: its operator, parameters, inputs, and what a function may ask for."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.store = spec, Store(spec.store)
        self.operator: Operator = registry.load(spec.operator)
        self.params: Params = self.operator.params.model_validate(spec.params)
        self.inputs = {name: StoredTable(self.store, ref) for name, ref in spec.inputs.items()}
        if self.operator.shape == "source":
            # What a source adds is all there is. To ask it again, in each job, could mean to read its labels again.
            self.added = {field.name: field for field in own_columns(spec.schema)}
        else:
            declared = self.operator.added(self.params, {name: table.schema for name, table in self.inputs.items()})
            self.added = {name: spec.schema.field(name) if name in spec.schema.names else field for name, field in declared.items()}
        self.metrics: dict[str, Any] = {}

    def declared(self, name: str) -> Any:
        """How the operator declares an input of this name."""
        return self.operator.inputs.get(name) or self.operator.inputs["*"]

    def offer(self, **more: Any) -> dict[str, Any]:
        """What a function of the operator may name in its signature."""
        draw = Draw(self.spec.seed, self.spec.operator)
        work = Work(device=_device(self.spec.device), threads=1, scratch=scratch_folder(self.store), draw=draw, metrics=self.metrics)
        return {"inputs": self.inputs, "params": self.params, "draw": draw, "work": work, "metrics": self.metrics, "schema": self.spec.schema, **more}

    def unit(self, unit: Unit) -> Iterator[Any]:
        """Run one unit within its threads, with checkpoints that outlive a crash."""
        import torch

        torch.set_num_threads(unit.threads)
        with tempfile.TemporaryDirectory(prefix="stillroom-", dir=scratch_folder(self.store)) as scratch:
            offer = self.offer(unit=unit)
            work: Work = offer["work"]
            work.threads, work.scratch = unit.threads, Path(scratch)
            work.saved = _Checkpoints(self.store, f"{self.spec.work}/checkpoints/{unit.name}")
            work.report = lambda done, total: report_progress(self.spec.fingerprint, unit.name, done, total)
            yield from call(self.operator.fn, offer)

    def write(self, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> "Written":
        """Write rows as fragments that nobody sees yet, counted as they go by."""
        tally = Tally(schema)
        fragments = write_batches(self.store, name, tally.watch(batches), schema)
        return Written(fragments, file_facts(self.store, data_files(name, fragments)), tally.as_json())

    def keep(self, name: str, batches: list[pa.RecordBatch], schema: pa.Schema) -> dict[str, list[int | str]]:
        """Let rows wait in the stage's work; the facts of their file."""
        key = f"{self.spec.work}/{name}.arrow"
        self.store.put(key, to_ipc(batches, schema))
        return file_facts(self.store, [key])

    def write_removed(self, batches: Iterable[pa.RecordBatch]) -> list[str]:
        """Write rows that left as fragments; none if there are no rows."""
        waiting = iter(batches)
        first = next(waiting, None)
        return [] if first is None else write_batches(self.store, self.spec.removed, chain([first], waiting), REMOVED_SCHEMA)

    def part(self, written: "Written", removed: Removed, counts: dict[str, int], gone: list[str] | None = None) -> Part:
        """What this job left, its removed rows written: those that were set aside, unless `gone` says where they went."""
        gone = self.write_removed(removed.batches) if gone is None else gone
        files = written.files | file_facts(self.store, data_files(self.spec.removed, gone))
        return Part(written.fragments, gone, files, written.tally, counts | removed.counts, self.metrics)


class Written(NamedTuple):
    """Fragments, the facts of their files by key, and the tally of their rows."""

    fragments: list[str]
    files: dict[str, list[int | str]]
    tally: dict[str, Any]


class _Checkpoints:
    """A unit's checkpoints, as objects in the store's work folder."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix

    def __setitem__(self, name: str, value: bytes) -> None:
        self.store.put(f"{self.prefix}/{name}", value)

    def get(self, name: str) -> bytes | None:
        return self.store.read(f"{self.prefix}/{name}")


def to_ipc(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """Rows as the bytes of an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def read_ipc(store: Store, key: str) -> pa.Table:
    """The rows of an Arrow file of the store."""
    return pa.ipc.open_file(pa.BufferReader(store.read(key))).read_all()


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
