"""What every source of samples shares: ids by content, the order of class names, batches of bounded size."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from blake3 import blake3
from pydantic import AfterValidator, BeforeValidator

from stillroom.digests import json_digest
from stillroom.errors import InputError
from stillroom.operators import Rows
from stillroom.stored import own_columns

__all__ = [
    "SPLITS",
    "SPLIT_ORDER",
    "ClassNames",
    "by_number",
    "content_id",
    "cut",
    "gather",
    "pixels_id",
    "readable",
    "reading",
    "rejecting",
    "signature",
]

# What folders and columns call the splits, and what stillroom calls them.
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "test": "test"}

# The order in which sources give the splits: of equal images in two of them the engine keeps the first,
# and what is measured on has to stay.
SPLIT_ORDER = ("test", "validation", "train")

_BATCH_ROWS = 256
_BATCH_BYTES = 64 << 20


def _texts(names: Any) -> Any:
    # YAML reads `classes: [1, 2, 10]` as numbers.
    return [str(name) if type(name) is int else name for name in names] if isinstance(names, list) else names


def _distinct(names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"class {twice[0]!r} is named twice")
    return names


# Class names in index order, as a parameter.
ClassNames = Annotated[list[str], BeforeValidator(_texts), AfterValidator(_distinct)]


def content_id(data: bytes) -> str:
    """The id of a sample by its bytes as found: 32 hex characters of BLAKE3."""
    return blake3(data).hexdigest(length=16)


def pixels_id(pixels: np.ndarray) -> str:
    """The id of a sample by its shape and pixels, uint8: where a source holds arrays, not files."""
    shape = "x".join(str(size) for size in pixels.shape)
    return content_id(f"{shape}\0".encode() + pixels.tobytes())


def by_number(name: str) -> tuple[list[tuple[str, int]], str]:
    """A sort key that counts runs of digits as numbers: 1, 2, 10, not 1, 10, 2.

    Equal under that rule (`1` and `01`) are told apart by their text.
    """
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return [(text, int(digits) if digits else -1) for text, digits in parts], name


def readable(name: str) -> str:
    """A name on disk as text: bytes that aren't UTF-8 show as \\xNN, everything else stays as it is."""
    return os.fsencode(name).decode(errors="backslashreplace")


def cut(names: Sequence[str], mean: int) -> list[tuple[int, int]]:
    """Cut sorted names into ranges of `mean` of them, on average, and four times as many at most.

    A range ends after a name whose hash says so, wherever it stands: new names change the ranges
    that they fall into, and leave the others as they were.
    """
    bounds, start = [], 0
    for place, name in enumerate(names, 1):
        ends = int.from_bytes(blake3(name.encode()).digest(length=8), "little") % mean == 0
        if ends or place - start == 4 * mean or place == len(names):
            bounds.append((start, place))
            start = place
    return bounds


def gather(samples: Iterable[tuple[Mapping[str, Any], str | None]], schema: pa.Schema) -> Iterator[Rows]:
    """Make batches of (values by column, reason to reject or None).

    A column that a sample doesn't name is null. A batch has at most 256 rows and is closed at 64 MiB
    of images, so that memory stays bounded whatever their size.
    """
    schema = own_columns(schema)
    rows: list[Mapping[str, Any]] = []
    reasons: list[str | None] = []
    size_bytes = 0
    for values, reason in samples:
        rows.append(values)
        reasons.append(reason)
        size_bytes += len(values.get("image") or b"")
        if len(rows) == _BATCH_ROWS or size_bytes >= _BATCH_BYTES:
            yield _batch(rows, reasons, schema)
            rows, reasons, size_bytes = [], [], 0
    if rows:
        yield _batch(rows, reasons, schema)


@contextmanager
def reading(where: str, problem: str) -> Iterator[None]:
    """Say in one line that a library couldn't read what other people wrote; on damaged files they raise whatever they stumble over.

    Raises:
        InputError: `where: problem`, and the first line of what the library said.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        raise InputError(where, f"{problem}: {said.splitlines()[0]}") from error


def rejecting(reasons: list[str | None]) -> pa.Array | None:
    """Reasons as `Rows` wants them: None where nothing leaves."""
    return pa.array(reasons, pa.string()) if any(reasons) else None


def _batch(rows: list[Mapping[str, Any]], reasons: list[str | None], schema: pa.Schema) -> Rows:
    columns = [pa.array([values.get(field.name) for values in rows], field.type) for field in schema]
    return Rows(pa.RecordBatch.from_arrays(columns, schema=schema), rejected=rejecting(reasons))


def signature(folder: Path, paths: Sequence[str], *more: Any) -> str:
    """What stands for these files without reading them: names, sizes, times and inodes; empty where one can't be looked at.

    `more` counts as well. As good as the cache of content digests, which trusts the same facts.
    """
    try:
        facts = [(quote(path, errors="surrogateescape"), os.stat(folder / path)) for path in paths]
    except OSError:
        return ""
    return json_digest([[[name, fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns, fact.st_ino] for name, fact in facts], *more])
