"""What fuzzers do to good input: flip and cut bytes, change trees of JSON values; and what must never come of it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from stillroom.errors import StillroomError

__all__ = ["ODD_TEXT", "ODD_VALUES", "damaged", "examples", "fuzz", "in_suite", "nothing_outside", "refused_or_fine", "twisted"]

ODD_TEXT = st.sampled_from(
    [
        "", ".", "..", "../../x", "/etc/passwd", "a/../../b", "~", "~a", "a\nb", "a\x00b", "\u202egnp", "ﬁ", "\U0001f4a9", "𝟙", "٣", "²", "-1", "1e999", "NaN", "null",
        "${env:HOME}", "{{7*7}}", "%s%n", "A" * 300, "<script>", "'; --", "café", "cafe\u0301", "s3://x/y", "file:///etc/passwd", "\ud800",
    ]
)  # fmt: skip
ODD_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40, 0.0, -0.5, 1e308, 5e-324])
ODD_VALUES = st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXT | st.sampled_from([[], {}, [[]], {"": None}, [None], {"a": {"b": {"c": 1}}}])


def examples(few: int) -> int:
    """How many examples are tried: FUZZ_EXAMPLES of the environment, else so few that the suite stays quick."""
    return int(os.environ.get("FUZZ_EXAMPLES", few))


def in_suite() -> bool:
    """Whether this is the suite, which tries the same examples every time, so that nobody's change is refused for what it didn't do."""
    return "FUZZ_EXAMPLES" not in os.environ


def fuzz(few: int) -> Callable[[Any], Any]:
    """Settings of a fuzz test, with as many examples."""
    # Made smaller only by `make fuzz`: it takes minutes where an example takes a second.
    phases = (Phase.explicit, Phase.generate) if in_suite() else tuple(Phase)
    return settings(max_examples=examples(few), derandomize=in_suite(), phases=phases, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with a few of them flipped, cut off, doubled, or replaced by others."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "drop", "double", "insert", "number"]))
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[at : at + length]
        elif kind == "double":
            out[at:at] = out[at : at + length]
        elif kind == "insert":
            out[at:at] = draw(st.binary(max_size=8))
        elif kind == "number":
            out[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]))
    return bytes(out)


@st.composite
def twisted(draw: st.DrawFn, value: Any) -> Any:
    """A tree of mappings, lists and values with one to three places changed, removed, swapped or added."""
    root = {"root": value}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        old = holder[key]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "gone", "wrapped", "other", "added"]))
        if kind == "odd":
            holder[key] = draw(ODD_VALUES)
        elif kind == "gone" and holder is not root:
            del holder[key]
        elif kind == "wrapped":
            holder[key] = draw(st.sampled_from([[old], {"x": old}, str(old)]))
        elif kind == "other":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = deepcopy(other[place])
        elif kind == "added" and isinstance(old, dict):
            old[draw(ODD_TEXT)] = draw(ODD_VALUES)
    return root["root"]


def refused_or_fine(call: Callable[[], Any]) -> Any:
    """What the call returns, or the line with which it refuses; anything else that it raises fails the test."""
    try:
        return call()
    except StillroomError as error:
        text = str(error)
        assert text.strip() and "Traceback" not in text
        return error


@contextmanager
def nothing_outside(allowed: Path) -> Iterator[None]:
    """No file beside `allowed`, in the folder that holds it, is made, changed or removed."""
    before = _listed(allowed)
    yield
    assert _listed(allowed) == before


def _listed(allowed: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for folder, folders, files in os.walk(allowed.parent):
        folders[:] = [name for name in folders if Path(folder, name) != allowed]
        for name in (*files, *folders):
            facts = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (facts.st_size if name in files else 0, facts.st_mtime_ns if name in files else 0)
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, item in items:
        yield value, key
        yield from _places(item)
