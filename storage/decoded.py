"""Decoded images in a snapshot, beside the encoded ones: a trainer reads them and decodes nothing.

They are made from the encoded ones, so they count for no digest: a snapshot with them holds the same as one without.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from stillroom.errors import StageError
from stillroom.fields import PIXELS_COLUMN, heavy_kind, pixels_field
from stillroom.images import ImageFault, decode_batch, probe
from stillroom.stored import StoredTable
from stillroom.tables import one_array
from storage.space import spread

__all__ = ["AUTO_RATIO", "Choice", "choose_decoded", "decoded_images"]

Choice = Literal["auto", "always", "never"]
# Up to so many bytes decoded for one encoded: small images, which take longer to decode than to read. Measured by benchmarks/loader.py.
AUTO_RATIO = 2.0
LOOKED_AT_ROWS = 256


def choose_decoded(tables: Sequence[StoredTable], choice: Choice) -> tuple[pa.Field | None, dict[str, Any]]:
    """The field of decoded images in a snapshot of these tables, None where it gets none; and what its manifest says of it.

    "auto" asks for images of one shape that are at most `AUTO_RATIO` times as large decoded, by some of each table's
    rows. It depends on the images alone, so that the same rows make the same files on every machine.

    Raises:
        StageError: "always", and they can't be stored decoded.
    """
    if choice == "never":
        return None, {"stored": False, "why": "publish.decoded is never"}
    shape, ratio, why = _measured(tables)
    if not why and choice == "auto" and ratio > AUTO_RATIO:
        why = f"they are {ratio:.1f} times as large as encoded, and `auto` takes up to {AUTO_RATIO:g}"
    if not why and len(_shapes(tables, shape)) > 1:
        why = "they differ in shape"
    if why and choice == "always":
        raise StageError("publish", f"publish.decoded is always, and images can't be stored decoded: {why}", "leave it at auto")
    told = {"ratio": round(ratio, 2)} if ratio else {}
    return (None, {"stored": False, "why": why, **told}) if why else (pixels_field(shape), {"stored": True, "shape": list(shape), **told})


def decoded_images(rows: pa.Table, field: pa.Field) -> pa.FixedSizeBinaryArray:
    """The images of these rows as that field holds them.

    Raises:
        StageError: one can't be decoded, though its header can be read.
    """
    try:
        pixels_BCHW = decode_batch(one_array(rows["image"]))
        return pa.FixedSizeBinaryArray.from_buffers(field.type, rows.num_rows, [None, pa.py_buffer(np.ascontiguousarray(pixels_BCHW))])
    except ImageFault as fault:
        hint = "reject such rows with filter.decodable, or set publish.decoded to never"
        raise StageError("publish", f"an image can't be stored decoded, of {rows.num_rows} samples from '{rows['sample_id'][0]}' on: {fault}", hint) from fault


def _measured(tables: Sequence[StoredTable]) -> tuple[tuple[int, int, int], float, str]:
    """By some rows of each table: shape [C, H, W], decoded bytes for one encoded; and why it can't be, if it can't."""
    shape, encoded, decoded = (0, 0, 0), 0, 0
    for table in tables:
        if PIXELS_COLUMN in table.schema.names:
            return shape, 0.0, f"a stage has made a column '{PIXELS_COLUMN}'"
        if "image" not in table.schema.names or heavy_kind(table.schema.field("image")) != "image":
            return shape, 0.0, "a split has no images"
        images = table.take(spread(table.rows, LOOKED_AT_ROWS), ["image"])["image"]
        if images.null_count:
            return shape, 0.0, "a row has no image"
        for data in images.to_pylist():
            if (found := _shape(data)) is None:
                return shape, 0.0, "an image can't be read"
            shape, encoded, decoded = found, encoded + len(data), decoded + math.prod(found)
    return shape, decoded / max(1, encoded), "" if encoded else "there are none"


def _shapes(tables: Iterable[StoredTable], first: tuple[int, int, int]) -> set[tuple[int, int, int] | None]:
    """The shapes of all images, None for one that is missing or broken; no further ones are looked for after the second."""
    found: set[tuple[int, int, int] | None] = {first}
    for table in tables:
        for batch in table.scan(["image"], 1024):
            found.update(map(_shape, batch["image"].to_pylist()))
            if len(found) > 1:
                return found
    return found


def _shape(data: bytes | None) -> tuple[int, int, int] | None:
    """What the header says; None of no image."""
    try:
        facts = probe(data or b"")
    except ImageFault:
        return None
    return facts.channels, facts.height, facts.width
