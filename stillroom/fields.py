"""Arrow fields with a meaning: images, vectors, labels, soft labels, and what is heavy.

The meaning stands in the field's metadata, so that it travels with every table and file.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

__all__ = [
    "HEAVY",
    "PIXELS_COLUMN",
    "heavy_kind",
    "heavy_names",
    "image_field",
    "label_field",
    "label_names",
    "light_names",
    "pixels_field",
    "pixels_shape",
    "score_facts",
    "score_field",
    "split_field",
    "splits_of",
    "vector_field",
    "vector_names",
    "with_meaning",
]

HEAVY = b"stillroom.heavy"
LABEL_NAMES = b"stillroom.label_names"
SPLIT_NAMES = b"stillroom.splits"
SCORE = b"stillroom.score"
# Decoded images, which a published table may have beside `image`.
PIXELS_COLUMN, SHAPE = "image_pixels", b"stillroom.shape"


def image_field(name: str = "image") -> pa.Field:
    """Encoded image bytes: stored once, in the table whose stage made them."""
    return pa.field(name, pa.binary(), metadata={HEAVY: b"image"})


def pixels_field(shape: Sequence[int]) -> pa.Field:
    """Decoded images, uint8 [C, H, W], all of that shape: made from `image`, and so without a hash of their own.

    As bytes, since LanceDB takes a list of numbers for a vector to be searched.
    """
    return pa.field(PIXELS_COLUMN, pa.binary(math.prod(shape)), metadata={HEAVY: b"decoded", SHAPE: json.dumps(list(shape)).encode()})


def pixels_shape(field: pa.Field) -> tuple[int, int, int] | None:
    """The shape [C, H, W] of decoded images, or None for another column."""
    raw = (field.metadata or {}).get(SHAPE)
    return tuple(json.loads(raw)) if raw else None


def vector_field(name: str, size: int, dtype: pa.DataType | None = None) -> pa.Field:
    """A vector of `size` numbers (float32 unless told): stored once, memory-mapped for select operators."""
    return pa.field(name, pa.list_(dtype or pa.float32(), size), metadata={HEAVY: b"vector"})


def vector_names(schema: pa.Schema) -> list[str]:
    """The columns that hold vectors, in their order."""
    return [field.name for field in schema if heavy_kind(field) == "vector" and pa.types.is_fixed_size_list(field.type)]


def label_field(names: Sequence[str], name: str = "label") -> pa.Field:
    """A class index, int64, 0 to K-1, with the K class names in the field's metadata."""
    return pa.field(name, pa.int64(), metadata={LABEL_NAMES: json.dumps(list(names)).encode()})


def label_names(schema: pa.Schema, name: str = "label") -> list[str] | None:
    """The class names of a label column in index order, or None where it has none."""
    if name not in schema.names:
        return None
    raw = (schema.field(name).metadata or {}).get(LABEL_NAMES)
    return json.loads(raw) if raw else None


def score_field(name: str, *, hard: Literal["high", "low"], low: float | None = None, high: float | None = None, **made_by: Any) -> pa.Field:
    """A score, float32, with its facts in the field's metadata.

    Args:
        hard: the end at which rows are hard.
        low, high: the bounds of its range; None where it has none.
        made_by: what it depends on: net, epochs, seeds, …
    """
    facts = {"hard": hard, "low": low, "high": high, **made_by}
    return pa.field(name, pa.float32(), metadata={SCORE: json.dumps(facts, sort_keys=True).encode()})


def score_facts(field: pa.Field) -> dict[str, Any] | None:
    """What `score_field` was told of a score, or None for another column."""
    raw = (field.metadata or {}).get(SCORE)
    return json.loads(raw) if raw else None


def split_field(splits: Sequence[str] = ("train", "validation", "test")) -> pa.Field:
    """The `split` column of a stage whose rows can only be in these splits."""
    return pa.field("split", pa.string(), metadata={SPLIT_NAMES: json.dumps(sorted(splits)).encode()})


def splits_of(field: pa.Field) -> frozenset[str]:
    """The splits that a `split` column may hold; all three where it doesn't say."""
    raw = (field.metadata or {}).get(SPLIT_NAMES)
    return frozenset(json.loads(raw) if raw else ("train", "validation", "test"))


def heavy_kind(field: pa.Field) -> str | None:
    """What makes a column heavy ("image", "vector", …), or None for a light one."""
    raw = (field.metadata or {}).get(HEAVY)
    return raw.decode() if raw else None


def heavy_names(schema: pa.Schema) -> list[str]:
    """Names of the heavy columns of a logical schema."""
    return [field.name for field in schema if heavy_kind(field)]


def light_names(schema: pa.Schema) -> list[str]:
    """Names of the light columns of a logical schema."""
    return [field.name for field in schema if not heavy_kind(field)]


def with_meaning(name: str, declared: pa.DataType | pa.Field) -> pa.Field:
    """A declared type or field as the field called `name`."""
    return declared.with_name(name) if isinstance(declared, pa.Field) else pa.field(name, declared)
