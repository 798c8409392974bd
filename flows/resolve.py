"""Resolve: is the recipe right? Every fault at once, each with stage, field, value and the nearest valid name.

Along every edge go the schema, what the table holds (samples, a model, metrics) and the set of
splits that its rows may be in. Nothing runs here; sources are only asked for their schema.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from pydantic import ValidationError

from flows.drafts import Draft, draft, prepared, sampled
from schemas.expectations import suite_for
from schemas.recipe import Edge, Recipe, examine, read_recipe
from schemas.secrets import redact
from schemas.wording import faults_of, near, shown
from stillroom import registry
from stillroom.errors import RecipeError, RecipeErrors, StillroomError
from stillroom.fields import label_names, splits_of, vector_names
from stillroom.operators import MODEL_COLUMNS, Input, Operator, Params
from stillroom.stored import snapshot_fields, with_hashes
from stillroom.views import mixed_columns

__all__ = ["Graph", "Resolved", "resolve", "resolve_text", "source_paths"]

ALL_SPLITS = frozenset({"train", "validation", "test"})
UNSPLIT = frozenset({""})
# What trains, selects, reinforces, generates or distils must not meet a test row.
TRAINING_KINDS = ("train", "prune", "reinforce", "generate", "distill")


@dataclass(frozen=True)
class Resolved:
    """A stage that is right: its operator, parameters, edges, and what goes out of it.

    `splits` are those that its rows may be in; {""} stands for rows that were never split.
    """

    name: str
    operator: Operator
    params: Params
    inputs: dict[str, Edge]
    draft: Draft
    schema: pa.Schema
    splits: frozenset[str]

    @property
    def hidden(self) -> bool:
        """Whether stillroom added it."""
        return self.draft.hidden


@dataclass(frozen=True)
class Graph:
    """A recipe that is right: its stages in an order in which they can run; `file` is the recipe's file name."""

    recipe: Recipe
    stages: dict[str, Resolved] = field(default_factory=dict)
    rows: int | None = None
    file: str = ""


def resolve(path: Path | str, overrides: Sequence[str] = (), rows: int | None = None) -> Graph:
    """Read a recipe and check all of it.

    Args:
        path: the recipe's file.
        overrides: `stage.parameter=value`, as after `--set`.
        rows: a trial on a stratified sample of so many rows of each source.

    Raises:
        InputError: the file can't be read.
        RecipeErrors: all that is wrong in it.
    """
    try:
        recipe = read_recipe(path, overrides)
    except RecipeErrors:
        # What the text gets wrong must not hide what its stages get wrong.
        return resolve_text(Path(path).read_text(encoding="utf-8-sig"), Path(path).absolute().parent, overrides, rows)
    return replace(_Resolving(recipe, [], rows).graph(), file=Path(path).name)


def resolve_text(text: str, base: Path, overrides: Sequence[str] = (), rows: int | None = None) -> Graph:
    """The same for a recipe's text; `base` is the folder that its paths are relative to."""
    recipe, faults = examine(text, base, overrides)
    if recipe is None:
        raise RecipeErrors(*faults)
    return _Resolving(recipe, faults, rows).graph()


def source_paths(params: Params) -> dict[str, Path]:
    """The parameters that are paths to what a recipe reads, by name, where they are set."""
    found = {}
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        if isinstance(value, Path) and ("source" in info.metadata or _mentions_source(info.annotation)):
            found[name] = value
    return found


class _Resolving:
    """Goes through the stages in topological order and goes on after a fault."""

    def __init__(self, recipe: Recipe, faults: list[RecipeError], rows: int | None) -> None:
        self.recipe, self.faults, self.rows = recipe, list(faults), rows
        self.drafts = draft(recipe, self.faults)
        self.done: dict[str, Resolved] = {}
        self.broken: set[str] = set()

    def graph(self) -> Graph:
        """The resolved recipe.

        Raises:
            RecipeErrors: everything that is wrong.
        """
        operators = {name: operator for name, found in self.drafts.items() if (operator := self._operator(found))}
        if self.rows is not None:
            sources = [name for name, operator in operators.items() if operator.shape == "source" and not operator.inputs and operator.gives == "samples"]
            self.drafts = sampled(self.drafts, sources, self.rows)
            operators |= {f"{name}--trial": registry.load("table.sample") for name in sources}
        for name, operator in list(operators.items()):
            if operator.prepare:
                ahead = registry.load(operator.prepare)
                found, before = prepared(self.drafts[name], next(iter(operator.inputs)), ahead.name, ahead.params.model_fields)
                self.drafts |= {before.name: before, name: found}
                operators[before.name] = ahead
        wired = {name: self._wire(found, operators[name]) for name, found in self.drafts.items() if name in operators}
        self.broken |= set(self.drafts) - set(operators)
        for name in self._order(wired):
            if name in wired and name not in self.broken:
                self._stage(self.drafts[name], operators[name], wired[name])
        self._publish()
        if self.faults:
            told = {fault.args: fault for fault in map(self._told, self.faults)}  # a twin repeats what is wrong in its stage
            raise RecipeErrors(*told.values())
        return Graph(self.recipe, self.done, self.rows)

    def _operator(self, found: Draft) -> Operator | None:
        if not found.op:
            return None  # the reader said so
        try:
            return registry.load(found.op)
        except RecipeError as error:
            _, _, problem, hint = error.args
            self._fault(found, "op", problem, hint)
        return None

    def _wire(self, found: Draft, operator: Operator) -> dict[str, Edge]:
        """Edges by the operator's input names; a bare edge is the first input, a list goes in order."""
        declared = [name for name in operator.inputs if name != "*"]
        free = "*" in operator.inputs
        wired: dict[str, Edge] = {}
        for name, edge in found.inputs.items():
            at = name
            if name == "" or (name.isdecimal() and not free):
                place = int(name or 0)
                if not declared and free:
                    at = "0"
                elif place < len(declared):
                    at = declared[place]
                else:
                    self._fault(
                        found,
                        "from",
                        f"operator '{operator.name}' takes {len(declared)} inputs",
                        f"known: {', '.join(declared)}" if declared else "it is a source: leave `from` out",
                    )
                    continue
            elif name not in declared and not free:
                self._fault(found, f"from.{name}", "unknown input", near(name, declared, "it is a source: leave `from` out" if not declared else ""))
                continue
            if edge.stage not in self.drafts:
                self._fault(
                    found,
                    f"from.{name}" if name else "from",
                    f"unknown stage '{edge.stage}'",
                    near(edge.stage, [n for n, d in self.drafts.items() if not d.hidden]),
                )
                self.broken.add(found.name)
                continue
            wired[at] = edge
        for name in declared:
            if name not in wired and not operator.inputs[name].optional and found.name not in self.broken:
                self._fault(found, f"from.{name}", "is missing", f"operator '{operator.name}' reads {', '.join(declared)}")
                self.broken.add(found.name)
        return {name: wired[name] for name in [*[n for n in declared if n in wired], *[n for n in wired if n not in declared]]}

    def _order(self, wired: dict[str, dict[str, Edge]]) -> list[str]:
        sorter = TopologicalSorter({name: [edge.stage for edge in inputs.values()] for name, inputs in wired.items()})
        try:
            return list(sorter.static_order())
        except CycleError as error:
            circle = list(reversed(error.args[1]))
            self._fault(self.drafts[circle[0]], "from", f"stages read each other in a circle: {' → '.join(circle)}", "an edge must point to an earlier stage")
            return []

    def _stage(self, found: Draft, operator: Operator, inputs: dict[str, Edge]) -> None:
        before = len(self.faults)
        params = self._params(found, operator)
        if any(edge.stage in self.broken or edge.stage not in self.done for edge in inputs.values()):
            self.broken.add(found.name)
            return
        declared = {name: operator.inputs.get(name) or operator.inputs["*"] for name in inputs}
        for name, edge in inputs.items():
            self._edge(found, operator, name, edge, declared[name], params)
        if params is None or len(self.faults) > before:
            self.broken.add(found.name)
            return
        schemas = {name: self.done[edge.stage].schema for name, edge in inputs.items()}
        try:
            added = operator.added(params, schemas)
            schema = self._schema(found, operator, params, inputs, declared, added)
        except StillroomError as error:
            self._say(found, error)
            self.broken.add(found.name)
            return
        self.done[found.name] = Resolved(found.name, operator, params, inputs, found, schema, self._splits(operator, inputs, declared, added))

    def _params(self, found: Draft, operator: Operator) -> Params | None:
        given = {name: value for name, value in found.params.items()}
        for name, info in operator.params.model_fields.items():
            is_path = "source" in info.metadata or _mentions_source(info.annotation)
            if is_path and isinstance(given.get(name), str):
                try:
                    given[name] = path = (self.recipe.base / Path(given[name]).expanduser()).resolve()
                    is_there = path.exists()
                except (OSError, RuntimeError, ValueError) as error:  # a name too long, a user who isn't there, a zero byte
                    self._fault(found, name, f"{shown(given[name])} can't be a path: {getattr(error, 'strerror', None) or error}")
                    return None
                if not is_there:
                    self._fault(found, name, f"'{path}' is not there", _nearest_file(path))
                    return None
        try:
            return operator.params.model_validate(given)
        except ValidationError as error:
            for wrong in faults_of(error, operator.params, given):
                self._fault(found, wrong.field, wrong.problem.replace("unknown word", "unknown parameter"), wrong.hint)
        return None

    def _edge(self, found: Draft, operator: Operator, name: str, edge: Edge, declared: Input, params: Params | None) -> None:
        """Whether what comes along an edge is what the operator wants, and may be used by it."""
        source = self.done[edge.stage]
        field_name = f"from.{name}" if name in found.inputs else "from"
        gives = source.operator.gives
        if gives != declared.kind:
            self._fault(found, field_name, f"'{edge.stage}' gives {_a(gives)}, and input '{name}' wants {_a(declared.kind)}", "")
            return
        if edge.split and "split" not in source.schema.names:
            self._fault(found, field_name, f"'{edge.stage}' has no splits", f"put a table.split after it: `from: split.{edge.split}`")
            return
        if params is not None:
            for column in declared.columns(params):
                if column not in source.schema.names:
                    names = [n for n in source.schema.names if not n.endswith("_hash")]
                    self._fault(
                        found,
                        field_name,
                        f"'{edge.stage}' has no column '{column}', which operator '{operator.name}' needs",
                        near(column, names, f"it has {', '.join(names)}"),
                    )
        if mixed_columns(source.schema) and operator.shape in ("row", "select") and not operator.keeps_rows and not declared.reference:
            problem = f"'{edge.stage}' has views that mix in other samples, and '{operator.name}' may drop some of those"
            self._fault(found, field_name, problem, f"put '{found.name}' before the stage that draws the views")
        splits = frozenset({edge.split}) if edge.split else source.splits
        trains = declared.trains if declared.trains is not None else operator.name.split(".")[0] in TRAINING_KINDS
        if trains and declared.kind == "samples" and not declared.reference and not self._trial(found):
            if splits == UNSPLIT:
                self._fault(
                    found,
                    field_name,
                    f"'{edge}' was never split, so its rows may be test rows",
                    f"put a table.split after '{edge.stage}' and read its train split",
                )
            elif "test" in splits:
                self._fault(found, field_name, f"'{edge}' may hold test rows, which must not reach '{operator.name}'", f"write `{edge.stage}.train`")

    def _schema(
        self, found: Draft, operator: Operator, params: Params, inputs: dict[str, Edge], declared: dict[str, Input], added: dict[str, pa.Field]
    ) -> pa.Schema:
        if operator.shape in ("source", "measure"):
            return with_hashes(pa.schema(added.values()))
        if operator.shape == "train":
            trained_on = [names for name in inputs if (names := label_names(self.done[inputs[name].stage].schema))]
            names = trained_on[0] if trained_on else getattr(params, "label_names", None)
            return with_hashes(_model_schema(names))
        fields: dict[str, pa.Field] = {}
        for name, edge in inputs.items():
            if declared[name].reference or (operator.shape != "select" and fields):
                continue
            for one in self.done[edge.stage].schema:
                other = fields.setdefault(one.name, one)
                if other.type != one.type:
                    raise RecipeError(
                        found.name,
                        f"from.{name}",
                        f"column '{one.name}' is {one.type} in '{edge.stage}' and {other.type} before",
                        "the inputs must agree on it",
                    )
                if label_names(pa.schema([other]), one.name) != label_names(pa.schema([one]), one.name) and one.name == "label":
                    raise RecipeError(
                        found.name, f"from.{name}", f"'{edge.stage}' has other class names than the inputs before", "the inputs must agree on their classes"
                    )
        return with_hashes(pa.schema((fields | added).values()))

    def _splits(self, operator: Operator, inputs: dict[str, Edge], declared: dict[str, Input], added: dict[str, pa.Field]) -> frozenset[str]:
        if "split" in added:
            return splits_of(added["split"])
        came = [
            frozenset({edge.split}) if edge.split else self.done[edge.stage].splits
            for name, edge in inputs.items()
            if declared[name].kind == "samples" and not declared[name].reference
        ]
        if operator.shape in ("row", "score"):
            came = came[:1]
        return frozenset().union(*came) if came else UNSPLIT

    def _publish(self) -> None:
        if self.recipe.publish is None:
            return
        for split, edge in self.recipe.publish.splits.items():
            field_name = f"publish.splits.{split}"
            if edge.stage not in self.drafts:
                hint = near(edge.stage, [name for name, found in self.drafts.items() if not found.hidden])
                self.faults.append(RecipeError("", self.recipe.at(field_name), f"unknown stage '{edge.stage}'", hint))
            elif edge.stage in self.done:
                found = self.done[edge.stage]
                splits = frozenset({edge.split}) if edge.split else found.splits
                if found.operator.gives != "samples":
                    self.faults.append(RecipeError("", self.recipe.at(field_name), f"'{edge}' gives {_a(found.operator.gives)}, not samples", ""))
                elif edge.split and "split" not in found.schema.names:
                    self.faults.append(RecipeError("", self.recipe.at(field_name), f"'{edge.stage}' has no splits", "put a table.split before it"))
                elif split == "train" and "test" in splits:
                    self.faults.append(RecipeError("", self.recipe.at(field_name), f"'{edge}' may hold test rows", f"write `{edge.stage}.train`"))

        tables = {split: self.done[edge.stage].schema for split, edge in self.recipe.publish.splits.items() if edge.stage in self.done}
        if len(tables) == len(self.recipe.publish.splits):
            self._checks(snapshot_fields(tables.values()))
            self._index(snapshot_fields(tables.values()))

    def _checks(self, schema: pa.Schema) -> None:
        """Whether the declared checks can be judged on what would be published."""
        assert self.recipe.publish is not None
        try:
            suite_for(schema, self.recipe.publish.require, label_names(schema))
        except RecipeErrors as errors:
            self.faults += [RecipeError("", self.recipe.at(error.args[1]), error.args[2], error.args[3]) for error in errors.args]

    def _index(self, schema: pa.Schema) -> None:
        """Whether the columns to be indexed are vectors of what would be published."""
        assert self.recipe.publish is not None
        vectors = vector_names(schema)
        for column in self.recipe.publish.index:
            if column not in vectors:
                problem = "isn't a column of vectors" if column in schema.names else "no such column"
                hint = near(column, vectors) if vectors else "`score.embed` makes one"
                self.faults.append(RecipeError("", self.recipe.at(f"publish.index.{column}"), problem, hint))

    def _told(self, fault: RecipeError) -> RecipeError:
        """A fault without what came from the environment."""
        return RecipeError(*(redact(part, self.recipe.secrets) for part in fault.args))

    def _trial(self, found: Draft) -> bool:
        return found.name.endswith("--trial")

    def _say(self, found: Draft, error: StillroomError) -> None:
        if isinstance(error, RecipeError) and len(error.args) == 4:
            self._fault(found, error.args[1], error.args[2], error.args[3])
        else:
            self._fault(found, "op", str(error))

    def _fault(self, found: Draft, field_name: str, problem: str, hint: str = "") -> None:
        shown_as = found.name.split("--")[0]
        self.faults.append(RecipeError(shown_as, found.stage.at(field_name), problem, hint))


def _model_schema(names: list[str] | None) -> pa.Schema:
    """MODEL_COLUMNS, with the class names that the model knows on `model_id`."""
    from stillroom.fields import label_field, with_meaning

    fields = [with_meaning(name, declared) for name, declared in MODEL_COLUMNS.items()]
    if names:
        fields[0] = fields[0].with_metadata(label_field(names).metadata)
    return pa.schema(fields)


def _mentions_source(annotation: Any) -> bool:
    return "source" in getattr(annotation, "__metadata__", ()) or any(_mentions_source(part) for part in get_args(annotation))


def _nearest_file(path: Path) -> str:
    parent = next((folder for folder in path.parents if folder.is_dir()), None)
    if parent is None or parent != path.parent:
        return "paths are relative to the recipe's folder"
    return near(path.name, [file.name for file in parent.iterdir()], "paths are relative to the recipe's folder")


def _a(gives: str) -> str:
    return {"samples": "samples", "model": "a model", "metrics": "metrics"}[gives]
