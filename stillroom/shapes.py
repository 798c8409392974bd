"""The shape of what a store writes down of itself: which members an object has, and of what kind.

A checksum says that the bytes are those that somebody sealed, not that it was stillroom. Readers go by
names of tables, keys of files and times, so an object of another shape is refused before they see it.
"""

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Any

__all__ = ["EXPORT", "EXPORTED", "NAME_PATTERN", "wrong_shape"]

# Of a recipe, and so of its snapshots and a folder of the store.
NAME_PATTERN = "[a-z0-9][a-z0-9_-]{0,63}"


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_command(value: Any) -> bool:
    try:
        return isinstance(value, str) and shlex.split(value) is not None
    except ValueError:
        return False


def _is_table(value: Any) -> bool:
    # It becomes a path below the store.
    return isinstance(value, str) and re.fullmatch(r"(stages/)?[\w-][\w.-]*", value) is not None and ".." not in value


def _is_below(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not value.startswith("/") and "\0" not in value and ".." not in value.split("/")


def _is_files(value: Any) -> bool:
    """Size and BLAKE3 by key; as one, since a table may have a hundred thousand of them."""
    return isinstance(value, dict) and all(
        _is_below(key) and isinstance(facts, list) and len(facts) == 2 and type(facts[0]) is int and isinstance(facts[1], str)
        for key, facts in value.items()
    )  # fmt: skip


# A shape is a type; a pattern that a text matches whole; a function that says whether it is one; a tuple of
# alternatives; a list of one shape; or members by name: `NAME?` may be absent, `*` stands for all others.
Shape = Any
ANY: Shape = object
NONE = type(None)
SIZE = lambda value: type(value) is int and value >= 0  # noqa: E731
WHOLE = lambda value: type(value) is int  # noqa: E731
NAME = re.compile(NAME_PATTERN)
PRINT = re.compile(r"[0-9a-f]{1,64}")
BEAT = re.compile(r"(beats/[0-9a-f]+)?")
TEXT_OR_NONE = (str, NONE)
METRIC = re.compile(r"cosine|l2|dot")

REF = {"name": _is_table, "version": SIZE, "rows": WHOLE, "fingerprint": PRINT, "digest?": str, "split?": TEXT_OR_NONE}
TABLE = {"name": _is_table, "version": SIZE, "*": ANY}
STAGE = {
    "name": str, "op": str, "shape": str, "gives": str, "hidden": bool, "fingerprint": str, "inputs": {"*": {"stage": str, "split": TEXT_OR_NONE}},
    "table": TABLE, "removed": (TABLE, NONE), "metrics?": dict, "counts?": {"*": (SIZE, NONE)}, "*": ANY,
}  # fmt: skip
MANIFEST = {
    "name": NAME, "number?": SIZE, "created?": _is_time, "digest": str, "rows": SIZE, "trial": bool, "splits": {"*": SIZE}, "files": _is_files,
    "table": {"name": _is_table, "version": SIZE, "rows": SIZE, "fingerprint": PRINT, "digest": str, "columns": {"*": str}, "*": ANY},
    "stages": [STAGE], "gates?": [dict], "proof?": (dict, NONE), "seed?": WHOLE, "recipe?": {"text": str, "path": str, "overrides": [str], "*": ANY},
    "decoded?": {"stored": bool, "*": ANY}, "indexes?": {"*": {"metric": METRIC, "kind": TEXT_OR_NONE, "vectors": SIZE, "*": ANY}}, "*": ANY,
}  # fmt: skip
RECORD = {
    "fingerprint": PRINT, "stage": str, "operator": str, "parts": {"join?": str, "*": ANY}, "table": REF, "removed": (REF, NONE), "counts": {"*": SIZE},
    "columns": {"*": str}, "files?": _is_files, "origins?": [str], "environment?": dict, "metrics?": dict, "seconds?": (int, float),
    "taken?": SIZE,
}  # fmt: skip
HOLDER = {"host?": str, "boot?": str, "pid?": SIZE, "started?": (int, NONE), "*": ANY}
RUN = {
    "id": re.compile(r"[\w.-]+"), "recipe": str, "started": _is_time, "state": str, "command": _is_command, "fingerprints": {"*": str},
    "holder?": HOLDER, "beat?": BEAT, "stage?": TEXT_OR_NONE, "message?": str, "*": ANY,
}  # fmt: skip
STONE = {"ids": [str], "sources": [str], "contents": [str], "tables": [str], "read_by": [str], "*": ANY}
# A manifest that comes from elsewhere.
EXPORTED = {**MANIFEST, "created": _is_time, "proof": (dict, NONE)}
EXPORT = {
    "format": WHOLE, "as": str, "snapshot": str, "digest": str, "rows": SIZE, "splits": {"*": SIZE}, "schema?": str, "stillroom?": str,
    "files": [{"file": _is_below, "bytes": SIZE, "blake3": str, "split?": str, "*": ANY}], "*": ANY,
}  # fmt: skip
SHAPES = [
    (re.compile(r"store\.json"), {"format": SIZE, "*": ANY}),
    (re.compile(r"snapshots/[^/]+/\d+\.json"), {**MANIFEST, "number": SIZE, "created": _is_time}),
    (re.compile(r"records/[^/]+\.json"), RECORD),
    (re.compile(r"(records|published)/[^/]+\.leaves"), {"leaves": {"*": [str]}, "*": ANY}),
    (re.compile(r"records/[^/]+\.units"), {"units": {"*": {"start": SIZE, "part": dict, "*": ANY}}, "*": ANY}),
    (re.compile(r"promoted/[^/]+/\d+\.json"), {"k": SIZE, "name": str, "number": (SIZE, NONE), "standing": [SIZE], "reason?": str, "at?": str, "*": ANY}),
    (re.compile(r"published/[^/]+\.json"), {"name": NAME, "number": SIZE, "*": ANY}),
    (re.compile(r"withdrawn/[^/]+/\d+\.json"), {"at": str, "reason": str, "way_out": str, "*": ANY}),
    (re.compile(r"runs/[^/]+\.json"), RUN),
    (re.compile(r"leases/.+\.json"), {"holder?": HOLDER, "beat?": BEAT, "token?": str, "*": ANY}),
    (re.compile(r"latest/[^/]+\.json"), {"fingerprint": PRINT, "input?": (REF, NONE)}),
    (re.compile(r"forgotten/salt\.json"), {"salt": re.compile(r"[0-9a-f]{64}"), "*": ANY}),
    (re.compile(r"forgotten/\d+\.json"), STONE),
    (re.compile(r"exports/[^/]+\.json"), {"snapshot": str, "splits": {"*": ANY}, "target": str, "as": str, "*": ANY}),
    (re.compile(r"work/.+\.json"), {"files?": _is_files, "*": ANY}),
]  # fmt: skip


def wrong_shape(key: str, value: Any, shape: Shape = None) -> str | None:
    """What isn't as it should be in the object of that key, such as `table.name`; None if all is, or if nothing is known of such a key."""
    shape = shape or next((shape for pattern, shape in SHAPES if pattern.fullmatch(key)), ANY)
    return _wrong(value, shape, "")


def _wrong(value: Any, shape: Shape, at: str) -> str | None:
    if isinstance(shape, tuple):
        found = [_wrong(value, each, at) for each in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return at or "it"
        return next((wrong for place, item in enumerate(value) if (wrong := _wrong(item, shape[0], f"{at}[{place}]"))), None)
    if isinstance(shape, dict):
        return _wrong_members(value, shape, at)
    if isinstance(shape, re.Pattern):
        fits = isinstance(value, str) and shape.fullmatch(value) is not None
    elif isinstance(shape, type):
        fits = isinstance(value, shape)
    else:
        is_one: Callable[[Any], bool] = shape
        fits = is_one(value)
    return None if fits else at or "it"


def _wrong_members(value: Any, shape: dict[str, Shape], at: str) -> str | None:
    if not isinstance(value, dict):
        return at or "it"
    dotted = f"{at}." if at else ""
    for name in shape:
        if name != "*" and not name.endswith("?") and name not in value:
            return f"{dotted}{name}, which is missing"
    for name, item in value.items():
        known = shape.get(name, shape.get(f"{name}?", shape.get("*")))
        if known is None:
            return f"{dotted}{name}, which nobody knows"
        if known is not ANY and (wrong := _wrong(item, known, f"{dotted}{name}")):
            return wrong
    return None
