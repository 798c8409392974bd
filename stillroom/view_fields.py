"""The fields of a stored view, and the numbers that they hold: the one place that knows both.

What a view of crop, flip and affine stores has been a leaf for each number from the start, and stays so. The
kinds that came later have a leaf each, their numbers packed into its bytes (`stillroom.packed` says why).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.packed import from_bytes, packed_field, to_bytes

__all__ = ["FIELD_GRID", "VIEW_FIELDS", "VIEW_TYPE", "Views", "as_stored", "from_numbers", "no_numbers", "to_numbers", "to_records", "view_type"]

# B = views, n = numbers of a leaf, G = grid points along a side of a random field

FIELD_GRID = 4
Views = dict[str, np.ndarray]

# The numbers of a leaf of bytes, and what each is stored as.
_PACKED: dict[str, tuple[str, tuple[str, ...]]] = {
    "jitter": ("<i2", ("brightness", "contrast", "saturation", "hue")),  # 1/1000; 1/10 degree
    "erase": ("<u2", tuple(f"erase_{name}" for name in "yxhw")),  # px of the view; height 0: none
    # The kind's number in MIXES; which view of the partner; the sample's own weight, 1/65535 (mixup); px of the view.
    "mix": ("<u2", ("mix", "partner_view", "mix_weight", *(f"mix_{name}" for name in "yxhw"))),
}


def _leaf(name: str) -> pa.Field:
    dtype, names = _PACKED[name]
    return packed_field(name, np.dtype(dtype).itemsize * len(names))


# What each kind of view stores. What a view lacks, it leaves as it is.
VIEW_FIELDS: dict[str, tuple[pa.Field, ...]] = {
    "crop": tuple(pa.field(f"crop_{name}", pa.int32()) for name in "yxhw"),  # px of the upright image
    "flip": (pa.field("flip", pa.bool_()),),  # left and right swapped
    "affine": (
        pa.field("shift_y", pa.int16()),  # 1/256 px of the resized image, down
        pa.field("shift_x", pa.int16()),  # 1/256 px, to the right
        pa.field("rotate", pa.int16()),  # 1/100 degree, counter-clockwise, about the centre
        pa.field("scale_y", pa.int16()),  # 1/10000, above 10000 enlarges; before the rotation
        pa.field("scale_x", pa.int16()),
    ),
    "quarter_turns": (pa.field("quarter_turns", pa.uint8()),),  # counter-clockwise
    # A leaf of two bytes a step: the op's number, and twice its magnitude of 0 to 30, plus 1 where a signed op goes the other way.
    "randaugment": (),
    "jitter": (_leaf("jitter"),),
    "random_field": (packed_field("random_field", 3 * FIELD_GRID**2),),  # int8 [G, G, 3]: down, right, brighter
    "erase": (_leaf("erase"),),
    "mix": (
        _leaf("mix"),
        pa.field("partner", pa.string()),  # a sample id; null where nothing is mixed in, or another view of the same sample
    ),
    "permutation": (pa.field("permutation", pa.uint8()),),  # of the channels, its number in stillroom.kernels.colour.PERMUTATIONS
}


def view_type(kinds: Sequence[str], randaugment_ops: int = 0) -> pa.StructType:
    """The struct of a view of these kinds (keys of VIEW_FIELDS); where it was cut out is always told."""
    steps = (packed_field("randaugment", 2 * randaugment_ops),)
    return pa.struct(
        [field for kind, fields in VIEW_FIELDS.items() if kind in kinds or kind == "crop" for field in (steps if kind == "randaugment" else fields)]
    )


VIEW_TYPE = view_type(("crop", "flip", "affine"))


def to_numbers(views: pa.StructArray) -> Views:
    """The numbers of B views by name, [B] each and int8 [B, G, G, 3] for random fields; partners and soft labels are no numbers."""
    found: Views = {}
    for index, field in enumerate(views.type):
        values = views.field(index)
        if field.name == "random_field":
            found[field.name] = to_bytes(values).view(np.int8).reshape(-1, FIELD_GRID, FIELD_GRID, 3)
        elif packed := _packed(field):
            dtype, names = packed
            found |= zip(names, to_bytes(values).view(dtype).T, strict=True)
        elif pa.types.is_integer(field.type) or pa.types.is_boolean(field.type):
            found[field.name] = values.to_numpy(zero_copy_only=False)
    return found


def to_records(views: pa.StructArray) -> list[dict[str, Any]]:
    """For each view its numbers as Python's, and the partner's id where the views have one."""
    columns = {name: values.tolist() for name, values in to_numbers(views).items()}
    if "partner" in views.type.names:
        columns["partner"] = views.field("partner").to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def from_numbers(numbers: Mapping[str, Any], kind: pa.StructType) -> pa.StructArray:
    """The views of type `kind` that have these numbers, [B] each, and partners; soft labels are null."""
    typed, arrays = as_stored(numbers, kind), []
    for field in kind:
        if field.name == "soft_label":
            arrays.append(pa.nulls(len(typed["crop_y"]), field.type))
        elif field.name == "random_field":
            arrays.append(from_bytes(typed[field.name].reshape(-1, 3 * FIELD_GRID**2).view(np.uint8)))
        elif packed := _packed(field):
            arrays.append(from_bytes(np.stack([typed[name] for name in packed[1]], axis=1).view(np.uint8)))
        else:
            arrays.append(pa.array(numbers["partner"] if field.name == "partner" else typed[field.name], field.type))
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def as_stored(numbers: Mapping[str, Any], kind: pa.StructType) -> Views:
    """The numbers that views of type `kind` store, each in the type that `to_numbers` gives."""
    typed: Views = {}
    for field in kind:
        if field.name == "random_field":
            typed[field.name] = np.asarray(numbers[field.name]).astype(np.int8).reshape(-1, FIELD_GRID, FIELD_GRID, 3)
        elif packed := _packed(field):
            typed |= {name: np.asarray(numbers[name]).astype(packed[0]) for name in packed[1]}
        elif field.name not in ("partner", "soft_label"):
            typed[field.name] = np.asarray(numbers[field.name]).astype(field.type.to_pandas_dtype())
    return typed


def no_numbers(kind: pa.StructType, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What `from_numbers` wants, each of `shape`: zeros, and nulls for partners."""
    columns: dict[str, np.ndarray] = {}
    for field in kind:
        if field.name == "partner":
            columns[field.name] = np.full(shape, None, object)
        elif field.name == "random_field":
            columns[field.name] = np.zeros((*shape, FIELD_GRID, FIELD_GRID, 3), np.int8)
        elif field.name != "soft_label":
            packed = _packed(field)
            columns |= {name: np.zeros(shape, np.int64) for name in (packed[1] if packed else (field.name,))}
    return columns


def _packed(field: pa.Field) -> tuple[str, tuple[str, ...]] | None:
    """What is in a leaf of bytes: the numbers' type, and their names."""
    if field.name == "randaugment":
        return "u1", tuple(f"{name}_{step}" for step in range(1, field.type.byte_width // 2 + 1) for name in ("op", "magnitude"))
    return _PACKED.get(field.name)
