"""Faults in words: where, what, the value, the way out."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["Wrong", "faults_of", "near", "shown"]


class Wrong(NamedTuple):
    """A fault in a mapping: the dotted name of the entry, the problem, a way out."""

    field: str
    problem: str
    hint: str


def near(word: str, words: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the nearest of the words, or `otherwise`, or all of them where they are few."""
    words = list(words)
    folded = {candidate.lower(): candidate for candidate in reversed(words)}
    close = difflib.get_close_matches(word.lower(), folded, 1)
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    return otherwise or (f"known: {', '.join(words)}" if 0 < len(words) <= 12 else "")


def shown(value: Any) -> str:
    """A value as an error shows it: `'20 %'`, `12`, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def faults_of(error: ValidationError, model: type[BaseModel], value: Any) -> list[Wrong]:
    """What Pydantic found wrong in `value`, read as `model`: an entry each, with the nearest valid name."""
    return [_worded(detail, model, value) for detail in error.errors(include_url=False)]


def _worded(detail: Any, model: type[BaseModel], value: Any) -> Wrong:
    loc, kind = detail["loc"], detail["type"]
    path = _path(loc, value)
    if kind == "extra_forbidden":
        return Wrong(_dotted(path), "unknown word", near(str(path[-1]), _words(model, path[:-1])))
    if kind == "missing":
        return Wrong(_dotted([*path, loc[-1]]), "is missing", "")
    if loc and loc[-1] == "[key]":
        words = detail.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ").split(", ")
        return Wrong(_dotted(path), "unknown name", near(str(path[-1]), words))
    if kind == "too_short":
        return Wrong(_dotted(path), f"has {detail['ctx']['actual_length']} entries, at least {detail['ctx']['min_length']} are needed", "")
    problem = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").removesuffix(", unable to parse string as a number")
    if kind in ("value_error", "check_word"):
        return Wrong(_dotted(path), problem, "")
    return Wrong(_dotted(path), f"{problem}, not {shown(detail['input'])}", "")


def _path(loc: Sequence[int | str], value: Any) -> list[int | str]:
    """The part of a Pydantic location that stands in the value; tags of unions don't."""
    path: list[int | str] = []
    for part in loc:
        stands = part in value if isinstance(value, dict) else isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if stands:
            value = value[part]
            path.append(part)
    return path


def _words(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The names that may stand at a path of a model."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            fields = [field for owner in models for name, field in owner.model_fields.items() if (field.alias or name) == part]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [*dict.fromkeys(field.alias or name for owner in models for name, field in owner.model_fields.items())]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _dotted(path: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in path)
