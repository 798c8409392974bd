"""Read YAML 1.2 as data and nothing else: no tags, no duplicate keys, bounded aliases, a line for every value.

ruamel's parser gives events, and plain scalars are resolved here by YAML 1.2's core schema, so no
constructor runs that a document could choose. `no`, `on` and `2026-01-01` are strings.
"""

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MAX_BYTES", "Document", "Fault", "Path", "read_yaml"]

Path = tuple[str, ...]

MAX_BYTES = 1_000_000
# A recipe of a hundred stages has some two thousand values. Aliases count as often as they are used.
MAX_VALUES = 10_000
MAX_DEPTH = 32

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# No leading zeros: 012 is a class or a file name as often as a number, so it stays as written.
# Python refuses to read an integer of more than 4,300 digits, so 100 are enough.
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_BASED = re.compile(r"0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_ODD_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


_NO_TAGS = "nothing in a recipe is executed; write the plain value, in quotes where it is text"


@dataclass(frozen=True)
class Fault:
    """What is wrong, on which line (from 1), at which keys from the root."""

    path: Path
    line: int
    problem: str
    hint: str = ""


@dataclass
class Document:
    """A document's value, the line of every entry by its path, and what is wrong with it.

    Where there are faults, `value` holds what could be read: None after an error of syntax.
    """

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """Read one document; never raises for what the text holds.

    Mapping keys are strings as written. Lists count in a path by their index from 0.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(text.encode(errors="replace")) > MAX_BYTES:
        return Document(faults=[Fault((), 1, f"is larger than {MAX_BYTES:,} bytes", "a recipe names files, it doesn't hold them")])
    reader = _Reader(YAML(typ="safe", pure=True).parse(text))
    try:
        reader.read()
    except _Refused as refused:
        reader.document.faults.append(refused.args[0])
        reader.document.value = None
    except YAMLError as error:
        reader.document.faults.append(_syntax_fault(error))
        reader.document.value = None
    return reader.document


class _Refused(Exception):
    """A fault after which reading on is pointless or dear."""


class _Reader:
    """Builds values from ruamel's events, recursively, within the limits above."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events, self.document = events, Document()
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.values = 0

    def read(self) -> None:
        next(self.events)  # the start of the stream
        if _kind(next(self.events)) == "StreamEnd":
            return
        self.document.value = self._value(next(self.events), ())
        next(self.events)  # the end of the document
        after = next(self.events)
        if _kind(after) != "StreamEnd":
            raise _Refused(Fault((), _line(after), "a second document begins", "a file holds one recipe; remove the '---'"))

    def _value(self, event: Any, path: Path) -> Any:
        before = self.values
        self.document.lines.setdefault(path, _line(event))
        self._count(1, event, path)
        if len(path) > MAX_DEPTH:
            raise _Refused(Fault(path[:2], _line(event), f"is nested deeper than {MAX_DEPTH} levels"))
        kind = _kind(event)
        if kind == "Alias":
            return self._alias(event, path)
        if event.tag is not None:
            # A tag asks the reader to make something other than data; nothing here can.
            raise _Refused(Fault(path, _line(event), f"the tag '{_short_tag(event.tag)}' is refused", _NO_TAGS))
        if kind == "Scalar":
            value = _resolve(event.value) if event.implicit[0] else event.value
        elif kind == "SequenceStart":
            value = self._sequence(path)
        else:
            value = self._mapping(path)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.values - before)
        return value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while _kind(event := next(self.events)) != "SequenceEnd":
            items.append(self._value(event, (*path, str(len(items)))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while _kind(key := next(self.events)) != "MappingEnd":
            if _kind(key) != "Scalar":
                raise _Refused(Fault(path, _line(key), "a key must be a word or a number"))
            name, here = key.value, (*path, key.value)
            if key.tag is not None:
                raise _Refused(Fault(here, _line(key), f"the tag '{_short_tag(key.tag)}' is refused", _NO_TAGS))
            if name == "<<" and key.implicit[0]:
                self._fault(path, key, "'<<' isn't YAML 1.2", "repeat the entries, or use an alias for one value")
            if name in mapping:
                self._fault(here, key, f"is written twice, first on line {self.document.lines[here]}", "keep one")
            # The line of an entry is that of its key; that of the first, where it is written twice.
            self.document.lines.setdefault(here, _line(key))
            value = self._value(next(self.events), here)
            mapping.setdefault(name, value)
        return mapping

    def _alias(self, event: Any, path: Path) -> Any:
        if event.anchor not in self.anchors:
            problem = f"the alias '*{event.anchor}' names no anchor before it"
            raise _Refused(Fault(path, _line(event), problem, f"mark a value with '&{event.anchor}' first, or quote the text"))
        value, size = self.anchors[event.anchor]
        self._count(size, event, path)
        return deepcopy(value)  # so that changing one place leaves the other

    def _count(self, values: int, event: Any, path: Path) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise _Refused(Fault(path[:2], _line(event), f"holds more than {MAX_VALUES:,} values, aliases included"))

    def _fault(self, path: Path, event: Any, problem: str, hint: str) -> None:
        self.document.faults.append(Fault(path, _line(event), problem, hint))


def _resolve(plain: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema; numbers with leading zeros stay text."""
    if _NULL.fullmatch(plain):
        return None
    if _BOOL.fullmatch(plain):
        return plain.lower() == "true"
    if _INT.fullmatch(plain):
        return int(plain)
    if _BASED.fullmatch(plain):
        return int(plain[2:], 8 if plain[1] == "o" else 16)
    if _FLOAT.fullmatch(plain) and math.isfinite(number := float(plain)):
        return number
    if _ODD_FLOAT.fullmatch(plain):
        return float(plain.replace(".", ""))
    return plain


def _syntax_fault(error: Exception) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Fault((), mark.line + 1 if mark else 1, f"isn't YAML: {problem}")


def _short_tag(tag: str) -> str:
    return "!!" + tag.removeprefix("tag:yaml.org,2002:") if tag.startswith("tag:yaml.org,2002:") else tag


def _kind(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
