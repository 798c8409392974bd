"""The contracts between an operator, which knows its method, and the engine, which runs it.

An operator is one file `<package>/<kind>/<name>.py` that makes one `Operator` with a decorator:

    row      a batch in, the same rows out, each with added columns or a reason to leave
    select   the light columns of all inputs in, one line per row out, with a reason to leave
    source   units of work that give samples     train    units that give models
    score    units that give columns for the input's rows      measure  units that give metrics

A function names in its signature what it needs of the arguments on offer, and the engine leaves
out the rest; `metrics`, a dict for small facts that the stage's record keeps, is offered to all.
Apart from sources, which read what they ingest, an operator does no I/O.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from stillroom.draws import Draw

__all__ = ["Draw", "Input", "Operator", "Params", "Rows", "SourcePath", "Table", "Unit", "Work", "call", "measure", "row", "score", "select", "source", "train"]

Shape = Literal["row", "select", "source", "train", "score", "measure"]
ANY = "*"

# A path in a recipe is relative to the recipe. In a fingerprint it counts by the digest of what it holds.
SourcePath = Annotated[Path, "source"]


class Params(BaseModel):
    """The base of every operator's parameters: unknown names are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Rows:
    """What became of a batch of B rows: B rows back, and for each a reason to leave, or null.

    `dropped` is a choice (a filter), `rejected` a fault (a broken file; counts towards `max_rejects`).
    Both are string arrays of B entries, or None where nothing leaves.
    """

    batch: pa.RecordBatch
    dropped: pa.Array | None = None
    rejected: pa.Array | None = None


@dataclass(frozen=True)
class Unit:
    """A piece of work of its own: resumed, retried and placed by its name.

    `start` and `stop` are its range where it is one; `value` is anything else that JSON can hold. The
    `key` of a source's unit stands for all that it reads: where an earlier build had a unit of that
    key, its rows are taken over. Without one, none are.
    """

    name: str
    start: int = 0
    stop: int = 0
    value: Any = None
    threads: int = 1
    key: str = ""


class Table(Protocol):
    """An operator's view of an input: named columns, heavy values resolved, memory bounded."""

    @property
    def schema(self) -> pa.Schema:
        """The columns, heavy ones as themselves."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def scan(self, columns: Sequence[str] | None = None, batch_size: int = 1024, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Read rows start to stop in order, `batch_size` at a time (the last may be shorter)."""

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows at these positions, in the order given."""

    def frame(self, columns: Sequence[str] | None = None) -> "Any":
        """Light columns of all rows as a Polars frame."""

    def vectors(self, column: str) -> np.ndarray:
        """A vector column of all rows, [N, D], memory-mapped."""

    def torch(self, columns: Sequence[str]) -> dict[str, "Any"]:
        """Columns of all rows as tensors: images decoded to uint8 [N, C, H, W], numbers as they are."""


@dataclass
class Work:
    """What a unit may use while it runs.

    Args:
        device: "cpu", "cuda" …; what `auto` came to.
        threads: how many threads this unit may use; set for torch before it starts.
        scratch: an empty folder of this unit's own, gone afterwards.
        draw: this stage's random numbers.
        saved: checkpoints by name, as `save` left them; the engine keeps them over a crash.
        report: called with (done, total) as the work goes on.
        metrics: small facts for people, kept in the stage's record.
    """

    device: str
    threads: int
    scratch: Path
    draw: Draw
    saved: Any = field(default_factory=dict)
    report: Callable[[float, float], None] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    def save(self, name: str, value: bytes) -> None:
        """Keep a checkpoint: a later run of this unit finds it with `load`."""
        self.saved[name] = value

    def load(self, name: str) -> bytes | None:
        """The checkpoint of that name, or None."""
        return self.saved.get(name)

    def progress(self, done: float, total: float) -> None:
        """Say how far the unit is; shown in the terminal and in the Prefect UI."""
        if self.report:
            self.report(done, total)


Columns = Sequence[str] | Callable[[Any], Sequence[str]]
# What an operator adds: types by name, or a function of (params, schemas of the inputs by name).
Adds = Mapping[str, pa.DataType | pa.Field] | Callable[[Any, Mapping[str, pa.Schema]], Mapping[str, pa.DataType | pa.Field]]


@dataclass(frozen=True)
class Input:
    """One input of an operator.

    Args:
        kind: what the stage before must give: a table of samples, a model, or metrics.
        requires: columns that must be there, or a function of the parameters.
        vectors: the heavy vector columns among them that a select operator wants as arrays.
        optional: whether a recipe may leave it out.
        trains: whether a test row here would leak: the edge is refused where it may hold `test`.
            None leaves it to the kind: what trains, selects, reinforces, generates or distils refuses.
        reference: the input is looked at, and its rows don't come out (select operators).
        also: columns that a row operator is given, and units look at, beside the required ones where the input has them.
    """

    kind: Literal["samples", "model", "metrics"] = "samples"
    requires: Columns = ()
    vectors: Columns = ()
    optional: bool = False
    trains: bool | None = None
    reference: bool = False
    also: Sequence[str] = ()

    def columns(self, params: Params) -> list[str]:
        """The required columns under these parameters, vector columns included."""
        return [*dict.fromkeys([*_of(self.requires, params), *_of(self.vectors, params)])]

    def vector_columns(self, params: Params) -> list[str]:
        """The columns that a select operator wants as arrays."""
        return list(_of(self.vectors, params))


@dataclass(frozen=True)
class Operator:
    """An operator as the engine sees it: made by the decorators below, never by hand.

    `fn` is the decorated function; calling the operator calls it.
    """

    name: str
    shape: Shape
    version: int
    params: type[Params]
    inputs: Mapping[str, Input]
    adds: Adds
    fn: Callable[..., Any]
    setup: Callable[..., Any] | None = None
    units: Callable[..., list[Unit]] | None = None
    finish: Callable[..., pa.Table] | None = None
    prepare: str | None = None
    keeps_rows: bool = False
    random: bool = False
    peers: bool | Callable[[Any], bool] = False
    hidden: bool = False
    saw: Callable[..., Any] | None = None
    summary: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decorated function."""
        return self.fn(*args, **kwargs)

    def added(self, params: Params, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
        """The fields that this operator adds or changes, by name, under these parameters and inputs."""
        from stillroom.fields import with_meaning

        adds = self.adds(params, schemas) if callable(self.adds) else self.adds
        return {name: with_meaning(name, declared) for name, declared in adds.items()}

    def sees_peers(self, params: Params) -> bool:
        """Whether a row's output depends on other rows of the input, under these parameters."""
        return self.peers(params) if callable(self.peers) else self.peers

    @property
    def gives(self) -> Literal["samples", "model", "metrics"]:
        """What the stage's table holds."""
        return {"train": "model", "measure": "metrics"}.get(self.shape, "samples")  # type: ignore[return-value]


# The columns of every table of models; `config` is canonical JSON: net, sizes, normalisation, label names, metrics.
MODEL_COLUMNS: dict[str, pa.DataType | pa.Field] = {
    "model_id": pa.string(),
    "seed": pa.int64(),
    "config": pa.string(),
    "metrics": pa.string(),
    "saw": pa.string(),
    "weights": pa.field("weights", pa.large_binary(), metadata={b"stillroom.heavy": b"weights"}),
}


def row(
    *,
    version: int,
    adds: Adds,
    requires: Columns = (),
    inputs: Mapping[str, Input] | None = None,
    setup: Callable[..., Any] | None = None,
    keeps_rows: bool = False,
    random: bool = False,
    peers: bool | Callable[[Any], bool] = False,
    hidden: bool = False,
) -> Callable[[Callable[..., Rows]], Operator]:
    """Make a row operator of `fn(batch, params, state, draw, peers, schema) -> Rows`.

    The batch holds `sample_id` and the required columns of the first input. The batch in the
    returned `Rows` must hold the added columns; its other columns are ignored. `setup(inputs,
    params, work)` runs once a process and gives `state`. `keeps_rows` promises that no row leaves. `peers`, or what
    it says of the parameters: a row's output depends on other rows, so none is taken over from an earlier build.
    """
    return _decorator(
        "row", version=version, adds=adds, inputs=_inputs(inputs, requires), setup=setup, keeps_rows=keeps_rows, random=random, peers=peers, hidden=hidden
    )


def select(
    *,
    version: int,
    adds: Adds | None = None,
    requires: Columns = (),
    vectors: Columns = (),
    inputs: Mapping[str, Input] | None = None,
    prepare: str | None = None,
    keeps_rows: bool = False,
    random: bool = False,
    hidden: bool = False,
) -> Callable[[Callable[..., Any]], Operator]:
    """Make a select operator of `fn(frames, vectors, params, draw) -> polars.DataFrame | polars.LazyFrame`.

    `frames` holds a frame for each input by name, with `sample_id` and the required light columns;
    `vectors` an array [N, D] for each vector column of the first input. The frame given back has
    one line per row of every input: `reason` (null = kept), the added columns, `row` (position in
    its input; may be left out where lines are in the input's order), `input` (its name; may be
    left out where there is one input), and `kind` ("rejected" for a fault; left out, rows are
    dropped). `split`, `label` and `source` are in a frame wherever the input has them. Kept rows
    come out in the order of the lines. A lazy frame, of expressions that go row by row, is collected
    in windows, more than once: reasons of millions of rows then never stand in memory together.
    `prepare` names a row operator that runs first, under those of the parameters that it shares.
    """
    return _decorator(
        "select",
        version=version,
        adds=adds or {},
        inputs=_inputs(inputs, requires, vectors),
        prepare=prepare,
        keeps_rows=keeps_rows,
        random=random,
        hidden=hidden,
    )


def source(
    *, version: int, units: Callable[..., list[Unit]], adds: Adds, inputs: Mapping[str, Input] | None = None, random: bool = False, hidden: bool = False
) -> Callable[[Callable[..., Any]], Operator]:
    """Make a source of `fn(unit, inputs, params, work, schema) -> Iterator[Rows | RecordBatch]`.

    `units(inputs, params)` lists the work. `adds` is the whole schema, `sample_id` included; the
    `…_hash` columns that `schema` has beside heavy ones are made by the engine. Rows
    with equal ids are merged by the engine; under two labels they are rejected.
    """
    return _decorator("source", version=version, adds=adds, inputs=inputs or {}, units=units, random=random, hidden=hidden)


def train(
    *,
    version: int,
    units: Callable[..., list[Unit]],
    inputs: Mapping[str, Input],
    finish: Callable[..., pa.Table] | None = None,
    random: bool = True,
    saw: Callable[..., Any] | None = None,
    hidden: bool = False,
) -> Callable[[Callable[..., Any]], Operator]:
    """Make a trainer of `fn(unit, inputs, params, work) -> Iterator[RecordBatch]` with MODEL_COLUMNS."""
    return _decorator("train", version=version, adds=MODEL_COLUMNS, inputs=inputs, units=units, finish=finish, random=random, saw=saw, hidden=hidden)


def score(
    *,
    version: int,
    units: Callable[..., list[Unit]],
    adds: Adds,
    inputs: Mapping[str, Input] | None = None,
    requires: Columns = (),
    finish: Callable[..., pa.Table] | None = None,
    random: bool = False,
    hidden: bool = False,
) -> Callable[[Callable[..., Any]], Operator]:
    """Make a score of `fn(unit, inputs, params, work) -> Iterator[RecordBatch]`.

    Batches hold `sample_id` and the added columns; after `finish(tables, inputs, params)`, if any
    (tables: one a unit, in their order), each row of the first input must be there exactly once.
    """
    return _decorator(
        "score", version=version, adds=adds, inputs=_inputs(inputs, requires), units=units, finish=finish, keeps_rows=True, random=random, hidden=hidden
    )


def measure(
    *,
    version: int,
    units: Callable[..., list[Unit]],
    adds: Adds,
    inputs: Mapping[str, Input],
    finish: Callable[..., pa.Table] | None = None,
    random: bool = False,
    hidden: bool = False,
) -> Callable[[Callable[..., Any]], Operator]:
    """Make a measure of `fn(unit, inputs, params, work) -> Iterator[RecordBatch]`: rows of metrics."""
    return _decorator("measure", version=version, adds=adds, inputs=inputs, units=units, finish=finish, random=random, hidden=hidden)


def call(fn: Callable[..., Any], offer: Mapping[str, Any]) -> Any:
    """Call `fn` with those of the offered arguments that its signature names."""
    return fn(**{name: offer[name] for name in inspect.signature(fn).parameters if name in offer})


def _decorator(shape: Shape, **declared: Any) -> Callable[[Callable[..., Any]], Operator]:
    def make(fn: Callable[..., Any]) -> Operator:
        kind, name = fn.__module__.rsplit(".", 2)[-2:]
        return Operator(name=f"{kind}.{name}", shape=shape, fn=fn, params=_params_of(fn), summary=_first_line(fn), **declared)

    return make


def _params_of(fn: Callable[..., Any]) -> type[Params]:
    """The Params model that the function's `params` argument is annotated with; none means no parameters."""
    declared = inspect.get_annotations(fn).get("params", Params)
    # Text where the module has `from __future__ import annotations`. The others stay as they are: they may name what is imported for types alone.
    return eval(declared, fn.__globals__) if isinstance(declared, str) else declared


def _first_line(fn: Callable[..., Any]) -> str:
    return (inspect.getdoc(fn) or "").split("\n", 1)[0]


def _inputs(inputs: Mapping[str, Input] | None, requires: Columns, vectors: Columns = ()) -> Mapping[str, Input]:
    return inputs if inputs is not None else {"samples": Input(requires=requires, vectors=vectors)}


def _of(columns: Columns, params: Params) -> Sequence[str]:
    return columns(params) if callable(columns) else columns
