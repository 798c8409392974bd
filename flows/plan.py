"""Plan: what runs, what is reused, and why. Pure but for reading records and content digests; opens no table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.resolve import Graph, Resolved, resolve, source_paths
from flows.sources import Looked, content_digest
from schemas.fingerprints import Prints, fingerprint
from schemas.wording import near
from stillroom.digests import json_digest
from stillroom.errors import InputError
from stillroom.format import require_format
from stillroom.records import Record, read_record
from stillroom.stores import Store
from storage.runs import last_run
from storage.tombstones import read_tombstones
from tasks.specs import StageSpec

__all__ = ["Plan", "Planned", "make_plan", "plan_graph"]


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    `record` is there where the store has the stage's table; `runs` says whether the build will run
    it; `reason` says why, in a few words.
    """

    resolved: Resolved
    prints: Prints
    seed: int
    record: Record | None
    runs: bool
    reason: str

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.resolved.name

    @property
    def op(self) -> str:
        """The operator's name."""
        return self.resolved.operator.name

    @property
    def hidden(self) -> bool:
        """Whether stillroom added it."""
        return self.resolved.hidden

    @property
    def reuse(self) -> bool:
        """Whether its table is taken as it is."""
        return self.record is not None

    @property
    def inputs(self) -> dict[str, str]:
        """What it reads, as a recipe writes it, by input name."""
        return {name: str(edge) for name, edge in self.resolved.inputs.items()}

    @property
    def rows(self) -> int | None:
        """How many rows its table has, where it is known."""
        return self.record.table.rows if self.record else None


@dataclass(frozen=True)
class Plan:
    """The stages in an order in which they can run, and what the recipe publishes of them."""

    graph: Graph
    store: str
    stages: list[Planned]
    until: str | None = None
    looked: Looked = field(default_factory=Looked)

    @property
    def running(self) -> list[Planned]:
        """The stages that a build has to run."""
        return [stage for stage in self.stages if stage.runs]

    def spec(self, planned: Planned, inputs: dict[str, Any]) -> StageSpec:
        """What the engine needs of a stage, its input tables known."""
        resolved = planned.resolved
        return StageSpec(
            store=self.store, stage=planned.name, operator=planned.op, params=resolved.params.model_dump(mode="json"), seed=planned.seed,
            fingerprint=planned.prints.table, parts=planned.prints.parts, table=table_name(self.graph.recipe.name, planned.name), schema=resolved.schema,
            inputs={name: replace(inputs[edge.stage], split=edge.split) for name, edge in resolved.inputs.items()},
            scores_fingerprint=planned.prints.scores, scores_parts=planned.prints.scores_parts or {},
            device=resolved.draft.run.device, retries=resolved.draft.run.retries, trial=self.graph.rows is not None,
        )  # fmt: skip


def make_plan(
    recipe: str | Path, store: str | Path | Store, overrides: Sequence[str] = (), rows: int | None = None, until: str | None = None, *, rehash: bool = False
) -> Plan:
    """Resolve a recipe and say what a build of it would do.

    Args:
        recipe: the file.
        store: where tables and records are.
        overrides: as after `--set`.
        rows: a trial on a stratified sample of so many rows of each source.
        until: stop after this stage; nothing is published.
        rehash: read source files again even if they look unchanged.

    Raises:
        InputError, RecipeErrors: what is wrong with the recipe.
    """
    require_format(Store(store))
    graph = resolve(recipe, overrides, rows)
    return plan_graph(graph, Store(store), until, rehash=rehash)


def plan_graph(graph: Graph, store: Store, until: str | None = None, *, rehash: bool = False) -> Plan:
    """The plan of a resolved recipe."""
    if until is not None and until not in graph.stages:
        raise InputError(f"--until {until}", "no such stage", near(until, [name for name, found in graph.stages.items() if not found.hidden]))
    prints: dict[str, Prints] = {}
    looked = Looked()
    stages: dict[str, Planned] = {}
    before = last_run(store, graph.recipe.name)
    tombstones = read_tombstones(store)
    for name, found in graph.stages.items():
        seed = found.draft.seed if found.draft.seed is not None else graph.recipe.seed
        digests = {parameter: content_digest(path, rehash=rehash, looked=looked) for parameter, path in source_paths(found.params).items()}
        digests |= _secret_digests(found, graph.recipe.secrets, digests)
        inputs = {at: prints[edge.stage].of_split(edge.split) for at, edge in found.inputs.items()}
        schemas = {at: graph.stages[edge.stage].schema for at, edge in found.inputs.items()}
        added = list(found.operator.added(found.params, schemas))
        prints[name] = fingerprint(found.operator, found.params, seed, inputs, found.schema.names, added, digests, tombstones.mark)
        record = read_record(store, prints[name].table)
        stages[name] = Planned(found, prints[name], seed, record, False, _reason(store, prints[name], record, before.get(name)))
    needed = _needed(graph, stages, until)
    listed = [replace(planned, runs=planned.record is None) for name, planned in stages.items() if name in needed]
    return Plan(graph, store.uri, listed, until, looked)


def _secret_digests(found: Resolved, secrets: frozenset[str], known: dict[str, str]) -> dict[str, str]:
    """Parameters that hold a secret count by a digest: a record holds what was hashed, and must not tell."""
    values = found.params.model_dump(mode="json")
    return {name: json_digest(value) for name, value in values.items() if name not in known and any(secret in str(value) for secret in secrets)}


def table_name(recipe: str, stage: str) -> str:
    """The store's name for a stage's table."""
    return f"stages/{recipe}.{stage}"


def _needed(graph: Graph, stages: dict[str, Planned], until: str | None) -> set[str]:
    """The stages that the targets need: of one that is reused, nothing above has to run."""
    targets = [until] if until else list(graph.stages)
    wanted = set(targets)
    if until:
        queue = [until]
        while queue:
            for edge in graph.stages[queue.pop()].inputs.values():
                if edge.stage not in wanted:
                    wanted.add(edge.stage)
                    queue.append(edge.stage)
    needed: set[str] = set()
    for name in reversed([name for name in graph.stages if name in wanted]):
        consumers = [
            other
            for other, found in graph.stages.items()
            if other in needed and stages[other].record is None and any(edge.stage == name for edge in found.inputs.values())
        ]
        final = name in _ends(graph, wanted)
        if final or consumers or stages[name].record is not None:
            needed.add(name)
    return needed


def _ends(graph: Graph, wanted: set[str]) -> set[str]:
    """Stages whose tables are wanted for themselves: published ones, and those that nobody reads."""
    read = {edge.stage for name, found in graph.stages.items() if name in wanted for edge in found.inputs.values()}
    published = {edge.stage for edge in graph.recipe.publish.splits.values()} if graph.recipe.publish else set()
    return {name for name in wanted if name not in read or name in published}


def _reason(store: Store, prints: Prints, record: Record | None, before: str | None) -> str:
    """Why a stage runs: what differs from the last run's stage of that name."""
    if record is not None:
        return f"built before ({record.table.rows:,} rows)"
    old = read_record(store, before) if before else None
    if old is None:
        return "never built"
    return "; ".join(list(dict.fromkeys(_differences(old.parts, prints.parts)))[:3]) or "its table is gone"


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for key in sorted({*old, *new}) for text in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)]
    if old == new:
        return []
    head, _, rest = at.partition(".")
    if head == "scores":
        return _differences(old, new, rest)
    if head == "join":
        return []  # says no more than what "scores" says
    if head in ("inputs", "to"):
        return [f"input {rest.split('.')[0] or 'samples'} changed"]
    if head == "version":
        return [f"operator version {old} → {new}"]
    if head == "params":
        return [f"{rest.split('.digest')[0]} has other content" if rest.endswith(".digest") else f"{rest}: {_short(old)} → {_short(new)}"]
    return [f"{at}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"
