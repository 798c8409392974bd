"""Rows of images that a stage made: the columns that all have, and one row of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.fields import image_field, label_field, split_field
from stillroom.images import encode_png

__all__ = ["synthetic_fields", "synthetic_row"]


def synthetic_fields(label_names: Sequence[str] | None) -> dict[str, pa.DataType | pa.Field]:
    """The columns of every source of images that were made, for training alone; the source adds its own."""
    return {
        "sample_id": pa.string(),
        "image": image_field(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "label": label_field(label_names) if label_names else pa.int64(),
        "label_name": pa.string(),
        "source": pa.string(),
        "split": split_field(["train"]),
        "synthetic": pa.bool_(),
    }


def synthetic_row(sample_id: str, pixels_HWC: np.ndarray, label: int, label_name: str, source: str) -> dict[str, Any]:
    """A value for each of these columns; `pixels_HWC` (uint8, 1 or 3 channels) is stored as PNG."""
    return {
        "sample_id": sample_id,
        "image": encode_png(pixels_HWC),
        "width": pixels_HWC.shape[1],
        "height": pixels_HWC.shape[0],
        "format": "png",
        "label": label,
        "label_name": label_name,
        "source": source,
        "split": "train",
        "synthetic": True,
    }
