"""The recipe: its models, and reading one from YAML with every fault at once.

What a recipe says is checked here as far as the text alone can tell. Whether operators, parameters,
columns and the stages on edges exist is the resolver's to say, which knows the operators.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError, WithJsonSchema

from schemas.checks import DeclaredCheck
from schemas.overrides import apply_overrides
from schemas.quantities import Fraction, Gain
from schemas.secrets import fill
from schemas.wording import faults_of, near, shown
from schemas.yaml import MAX_BYTES, Fault, read_yaml
from stillroom.errors import InputError, RecipeError, RecipeErrors
from stillroom.shapes import NAME_PATTERN

__all__ = [
    "EDGE_SCHEMA", "NAME_PATTERN", "RESERVED", "SPLITS", "TOP",
    "Edge", "Promote", "Publish", "Recipe", "Require", "Run", "Stage", "examine", "parse_edge", "parse_recipe", "read_recipe",
]  # fmt: skip

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TOP = ("name", "seed", "stages", "publish")
RESERVED = ("op", "from", "seed", "run")
# Names become names of tables, tags and files, with dots and dashes of ours between them.
_NAME = re.compile(NAME_PATTERN)
_NAME_HINT = "names are a letter or digit, then letters, digits, dashes, underscores: all lower case, at most 64"

Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]


EDGE_SCHEMA = {"type": "string", "pattern": rf"^{NAME_PATTERN}(\.({'|'.join(SPLITS)}))?$", "description": "A stage, or one split of it: clean.train."}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Part = TypeVar("_Part", bound=_Model)


class Edge(_Model):
    """What a stage reads: a stage's table, or one split of it; written `clean` or `clean.train`."""

    stage: str
    split: Split | None = None

    def __str__(self) -> str:
        return f"{self.stage}.{self.split}" if self.split else self.stage


class Run(_Model):
    """How a stage runs: nothing that changes what it makes."""

    retries: StrictInt = Field(default=2, ge=0, le=100, description="How often work is tried again whose worker process was lost.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$", description="auto, cpu, mps, cuda or cuda:N.")


class Stage(_Model):
    """One stage of a recipe.

    `inputs` holds edges by input name: the one name "" for a bare `from: a`, "0", "1" … for a list.
    `params` is everything that isn't reserved, with `${env:…}` filled in; `written` is the same as
    it stands in the recipe, and is what may be shown. `lines` has the line of each entry by its
    dotted name (`views.count`), 0 for what came from `--set`. A stage without `op` has "" there.
    """

    op: str
    inputs: dict[str, list[Edge]] = {}
    bare: bool = False
    params: dict[str, Any] = Field(default={}, repr=False)
    written: dict[str, Any] = {}
    seed: int | None = None
    run: Run = Run()
    line: int = 0
    lines: dict[str, int] = Field(default={}, repr=False)

    def at(self, field: str) -> str:
        """A field with the line that says so, for an error: `views.count (line 12)`."""
        return _at(field, {**self.lines, "": self.line})


class Require(_Model):
    """What a build must meet to become a snapshot."""

    max_leaks: StrictInt = Field(default=0, ge=0, description="Pictures of the training split that also stand in validation or test.")
    max_rejects: Fraction = Field(default=0.01, description="Rows with a fault, as a part of all rows read.")
    checks: tuple[DeclaredCheck, ...] = Field(default=(), description="What must hold in every published row.")


class Promote(_Model):
    """What the lower end of a 95 % interval must reach for a snapshot to be promoted."""

    min_gain_over_control: Gain | None = Field(default=None, description="Least gain in accuracy over the control: 0, 1%, -0.5%.")
    min_gain_over_current: Gain | None = Field(default=None, description="Least gain in accuracy over the promoted snapshot.")
    min_gain_over_random: Gain | None = Field(
        default=None, description="Least gain in accuracy of every set that evaluate.distilled judges over as many random samples."
    )


def _edge(value: Any) -> Any:
    return value if isinstance(value, Edge | dict) else parse_edge(value)


_WrittenEdge = Annotated[Edge, BeforeValidator(_edge), WithJsonSchema(EDGE_SCHEMA)]


class Publish(_Model):
    """What is published, and the gates before it."""

    splits: dict[Split, _WrittenEdge] = Field(min_length=1, description="Where each split's rows come from.")
    index: dict[str, Literal["cosine", "l2", "dot"]] = Field(default={}, description="Vector columns that get an index for searches, each with its metric.")
    decoded: Literal["auto", "always", "never"] = Field(
        default="auto", description="Whether images are stored decoded as well, for trainers: `auto` where that is at most twice their size."
    )
    require: Require = Require()
    promote: Promote | None = None


class Recipe(_Model):
    """A recipe as read: `text` is the file as it stands, `overrides` what `--set` changed in it."""

    name: str
    seed: int = 0
    stages: dict[str, Stage]
    publish: Publish | None = None
    text: str = Field(repr=False)
    base: Path
    overrides: tuple[str, ...] = ()
    secrets: frozenset[str] = Field(default=frozenset(), repr=False)
    lines: dict[str, int] = Field(default={}, repr=False)

    def at(self, field: str) -> str:
        """A field outside the stages with its line, for an error: `publish.splits.test (line 30)`."""
        return _at(field, self.lines)


def read_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file; paths in it are relative to the file's folder.

    Raises:
        InputError: the file can't be read.
        RecipeErrors: all that is wrong in it, one line each.
    """
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES:
            raise InputError(str(path), f"has {size_bytes:,} bytes, a recipe at most {MAX_BYTES:,}", "a recipe names files, it doesn't hold them")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        found = sorted(file.name for file in path.parent.glob("*.y*ml"))
        raise InputError(str(path), "no such recipe", near(path.name, found, "`stillroom init FOLDER` writes one")) from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder", f"`stillroom init {path}` writes a recipe for it") from None
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"isn't text in UTF-8: byte {error.start}", "save it as UTF-8") from None
    except OSError as error:
        raise InputError(str(path), f"can't be read: {error.strerror}") from None
    return parse_recipe(text, path.absolute().parent, overrides)


def parse_recipe(text: str, base: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from its text; `base` is the folder that its paths are relative to.

    Raises:
        RecipeErrors: all that is wrong in it, one line each.
    """
    recipe, faults = examine(text, base, overrides)
    if faults or recipe is None:
        raise RecipeErrors(*faults)
    return recipe


def examine(text: str, base: Path, overrides: Sequence[str] = ()) -> tuple[Recipe | None, list[RecipeError]]:
    """Everything that is wrong in a recipe's text, and what can be read of it all the same.

    So a resolver can add its own faults and report all of them at once. The recipe is None where
    no stage could be read. What is wrong is left out or at its default in it.
    """
    document = read_yaml(text)
    faults = [_yaml_fault(fault) for fault in document.faults]
    if not isinstance(document.value, dict):
        if not faults:
            faults = [RecipeError("", "line 1", "holds no mapping" if text.strip() else "is empty", "a recipe begins with 'name:' and 'stages:'")]
        return None, faults
    faults += apply_overrides(document.value, document.lines, overrides)
    reading = _Reading(document.value, {".".join(path): line for path, line in document.lines.items() if path}, faults)
    recipe = reading.recipe(text, base, tuple(overrides))
    return recipe, faults


def parse_edge(text: Any) -> Edge:
    """`clean` or `clean.train` as an edge.

    Raises:
        ValueError: it is neither; the nearest split is in the text.
    """
    if not isinstance(text, str):
        raise ValueError(f"should name a stage, not {shown(text)}")
    stage, dot, split = text.partition(".")
    if not _NAME.fullmatch(stage):
        raise ValueError(f"{shown(text)} isn't a stage's name, or a stage and a split: write clean or clean.train")
    if dot and split not in SPLITS:
        raise ValueError(f"'{split}' of '{text}' isn't a split; {near(split, SPLITS)}")
    return Edge(stage=stage, split=cast("Split", split) if dot else None)


class _Reading:
    """Reads a recipe's tree part by part, and goes on after a fault."""

    def __init__(self, tree: dict[str, Any], lines: dict[str, int], faults: list[RecipeError]) -> None:
        self.tree, self.lines, self.faults = tree, lines, faults
        self.secrets: set[str] = set()

    def recipe(self, text: str, base: Path, overrides: tuple[str, ...]) -> Recipe | None:
        for word in self.tree:
            if word not in TOP:
                self._fault("", word, "unknown word", near(word, TOP))
        name, seed, stages = self._name(), self._seed("", self.tree, "seed"), self._stages()
        publish = self._model(Publish, self.tree.get("publish"), "", "publish") if "publish" in self.tree else None
        if not stages:
            return None
        return Recipe(
            name=name, seed=seed or 0, stages=stages, publish=publish, text=text, base=base,
            overrides=overrides, secrets=frozenset(self.secrets), lines=self.lines,
        )  # fmt: skip

    def _name(self) -> str:
        name = self.tree.get("name")
        if name is None:
            self._fault("", "name", "is missing", "snapshots are called by it: name: photos")
        elif problem := _name_problem(name):
            self._fault("", "name", problem, _NAME_HINT)
        else:
            return str(name)
        return "recipe"

    def _seed(self, stage: str, entries: dict[str, Any], field: str) -> int | None:
        seed = entries.get("seed")
        if seed is None or (type(seed) is int and 0 <= seed < 2**63):
            return seed
        self._fault(stage, field, f"should be a whole number from 0 to 2^63 - 1, not {shown(seed)}")
        return None

    def _stages(self) -> dict[str, Stage]:
        stages = self.tree.get("stages")
        if stages is None:
            self._fault("", "stages", "is missing" if "stages" not in self.tree else "is empty", "name at least one stage under it")
        elif not isinstance(stages, dict):
            self._fault("", "stages", "should be a mapping of names to stages", "write raw: {op: ingest.image_folder, path: photos}")
        elif not stages:
            self._fault("", "stages", "is empty", "name at least one stage under it")
        else:
            return {name: stage for name, entries in stages.items() if (stage := self._stage(name, entries))}
        return {}

    def _stage(self, name: str, entries: Any) -> Stage | None:
        if problem := _name_problem(name):
            self._fault(name, "", problem, _NAME_HINT)
        elif name in TOP:
            self._fault(name, "", "is a word of the recipe itself, not a name for a stage", "indent it less, or call the stage otherwise")
            return None
        if not isinstance(entries, dict):
            self._fault(name, "", f"should be a mapping, not {shown(entries)}", f"write {name}: {{op: …, from: …}}")
            return None
        inputs = self._inputs(name, entries) if "from" in entries else {}
        params, written = self._params(name, entries)
        prefix = f"stages.{name}."
        return Stage(
            op=self._op(name, entries), inputs=inputs, bare=isinstance(entries.get("from"), str), params=params, written=written,
            seed=self._seed(name, entries, "seed"), run=self._model(Run, entries["run"], name, "run") or Run() if "run" in entries else Run(),
            line=self.lines.get(f"stages.{name}", 0),
            lines={key.removeprefix(prefix): line for key, line in self.lines.items() if key.startswith(prefix)},
        )  # fmt: skip

    def _op(self, stage: str, entries: dict[str, Any]) -> str:
        op = entries.get("op")
        if isinstance(op, str) and op:
            return op
        if "op" in entries:
            self._fault(stage, "op", f"should name an operator, not {shown(op)}", "`stillroom ops` lists them")
        else:
            close = [word for word in entries if word not in RESERVED and near(word, ["op"], "-") != "-"]
            self._fault(stage, "op", "is missing", f"did you mean it by '{close[0]}'?" if close else "`stillroom ops` lists the operators")
        return ""

    def _inputs(self, stage: str, entries: dict[str, Any]) -> dict[str, list[Edge]]:
        value = entries["from"]
        named = {"": value} if isinstance(value, str) else dict(enumerate(value)) if isinstance(value, list) else value
        if not isinstance(named, dict) or not named:
            problem = f"should name stages, not {shown(value)}" if value else "names no stage"
            self._fault(stage, "from", problem, "write from: clean, or from: {samples: clean}")
            return {}
        inputs: dict[str, list[Edge]] = {}
        for name, edges in named.items():
            field = "from" if name == "" else f"from.{name}"
            parsed = []
            for edge in edges if isinstance(edges, list) and edges else [edges]:
                try:
                    parsed.append(parse_edge(edge))
                except ValueError as error:
                    self._fault(stage, field, str(error))
            if parsed:
                inputs[str(name)] = parsed
        return inputs

    def _params(self, stage: str, entries: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        written = {name: value for name, value in entries.items() if name not in RESERVED}
        params = {}
        for name, value in written.items():
            if name.lower() in RESERVED:
                self._fault(stage, name, "unknown word", near(name, RESERVED))
            params[name], secrets, unfilled = fill(value, os.environ)
            self.secrets |= secrets
            for problem, hint in unfilled:
                self._fault(stage, name, problem, hint)
        return params, written

    def _model(self, model: type[_Part], value: Any, stage: str, field: str) -> _Part | None:
        try:
            return model.model_validate({} if value is None else value)
        except ValidationError as error:
            for wrong in faults_of(error, model, value):
                self._fault(stage, f"{field}.{wrong.field}" if wrong.field else field, wrong.problem, wrong.hint)
            return None

    def _fault(self, stage: str, field: str, problem: str, hint: str = "") -> None:
        where = ".".join(part for part in ("stages" if stage else "", stage, field) if part)
        self.faults.append(RecipeError(stage, _at(field, self.lines, where), problem, hint))


def _at(field: str, lines: Mapping[str, int], where: str | None = None) -> str:
    """A field and the line of the nearest entry above it that has one: `views.count (line 12)`."""
    known = where = field if where is None else where
    while known and known not in lines:
        known = known.rpartition(".")[0]
    if known not in lines:
        return field
    place = f"line {lines[known]}" if lines[known] else "--set"
    return f"{field} ({place})" if field else place


def _name_problem(name: Any) -> str | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"{shown(name)} isn't a name"
    if "--" in name:
        return f"{shown(name)} has two dashes in a row, which mark the stages that stillroom adds"
    return None


def _yaml_fault(fault: Fault) -> RecipeError:
    """A fault of the YAML reader, said of the stage that it is in."""
    stage = fault.path[1] if fault.path[:1] == ("stages",) and len(fault.path) > 1 else ""
    field = ".".join(fault.path[2:] if stage else fault.path)
    return RecipeError(stage, f"{field} (line {fault.line})" if field else f"line {fault.line}", fault.problem, fault.hint)
