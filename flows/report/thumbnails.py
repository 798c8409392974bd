"""Sample pictures for the report: a few rows of a table as small PNG data URIs, within a budget of bytes."""

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.fields import heavy_kind, label_names
from stillroom.images import ImageFault, decode, encode_png
from stillroom.operators import Table

__all__ = ["Picture", "data_uri", "image_column", "pictures", "shrink", "side_for"]

# C = channels, H W = an image

LARGEST_PX, SMALLEST_PX = 80, 24
# The page must stay under 5 MB: these are what pictures of pure noise would take, in base64.
_BUDGET_BYTES = 3_300_000
_PNG_OVERHEAD = 200
# Encoded images are read a few at a time: they may be of megabytes each.
_TAKE_ROWS = 4


@dataclass(frozen=True)
class Picture:
    """A sample as the report shows it. `uri` is empty where the image can't be shown, and `note` says why."""

    sample_id: str
    uri: str
    label: str
    source: str
    synthetic: bool
    small: bool
    note: str = ""


def side_for(count: int) -> int:
    """The side in pixels that `count` colour pictures may have, so that even noise stays in the budget."""
    each = _BUDGET_BYTES / max(1, count) * 3 / 4 - _PNG_OVERHEAD
    return max(SMALLEST_PX, min(LARGEST_PX, math.isqrt(max(1, int(each)) // 3)))


def image_column(schema: pa.Schema) -> str | None:
    """The first column of images, or None."""
    return next((field.name for field in schema if heavy_kind(field) == "image"), None)


def pictures(table: Table, rows: Sequence[int], side_px: int) -> list[Picture]:
    """The samples at these rows, in the order given, read a few at a time."""
    image = image_column(table.schema)
    names = label_names(table.schema)
    columns = [name for name in ("sample_id", image, "label", "label_name", "source", "synthetic") if name and name in table.schema.names]
    shown = []
    for start in range(0, len(rows), _TAKE_ROWS):
        for sample in table.take(rows[start : start + _TAKE_ROWS], columns).to_pylist():
            shown.append(_picture(sample, image, names, side_px))
    return shown


def shrink(pixels_HWC: np.ndarray, side_px: int) -> np.ndarray:
    """Shrink to at most `side_px` on the longer side, by averaging; smaller images stay as they are.

    Block averages in integers: a 20 megapixel photo is first thinned to some four times the size asked for.
    """
    height, width = pixels_HWC.shape[:2]
    longest = max(height, width)
    if longest <= side_px:
        return pixels_HWC
    step = max(1, longest // (4 * side_px))
    thinned = pixels_HWC[::step, ::step].astype(np.uint32)
    down, across = (max(1, round(size * side_px / longest)) for size in (height, width))
    rows = np.add.reduceat(thinned, _starts(thinned.shape[0], down), axis=0)
    cells = np.add.reduceat(rows, _starts(thinned.shape[1], across), axis=1)
    members = _sizes(thinned.shape[0], down)[:, None, None] * _sizes(thinned.shape[1], across)[None, :, None]
    return ((cells + members // 2) // members).astype(np.uint8)


def data_uri(pixels_HWC: np.ndarray) -> str:
    """Pixels as a PNG data URI."""
    return "data:image/png;base64," + b64encode(encode_png(pixels_HWC)).decode()


def _picture(sample: dict[str, object], image: str | None, names: list[str] | None, side_px: int) -> Picture:
    code, name = sample.get("label"), sample.get("label_name")
    if name is None and isinstance(code, int):
        name = names[code] if names and 0 <= code < len(names) else str(code)
    source = sample.get("source")
    said: dict[str, Any] = {
        "sample_id": str(sample["sample_id"]),
        "label": "" if name is None else str(name),
        "source": ", ".join(map(str, source)) if isinstance(source, list) else str(source or ""),
        "synthetic": bool(sample.get("synthetic")),
    }
    data = sample.get(image) if image else None
    if not isinstance(data, bytes):
        return Picture(**said, uri="", small=True, note="no image")
    try:
        pixels_HWC = decode(data)
    except ImageFault as fault:
        return Picture(**said, uri="", small=True, note=str(fault))
    return Picture(**said, uri=data_uri(shrink(pixels_HWC, side_px)), small=max(pixels_HWC.shape[:2]) <= 40)


def _starts(size: int, parts: int) -> np.ndarray:
    return np.arange(parts) * size // parts


def _sizes(size: int, parts: int) -> np.ndarray:
    return np.diff(np.append(_starts(size, parts), size)).astype(np.uint32)
