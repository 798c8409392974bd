"""Views: the augmentations of a sample that are stored as numbers, drawn once and replayed for ever.

`stillroom.drawn_views` makes the numbers, `stillroom.replay` turns them into pixels, and the field of a column of
views carries the contract between the two: kernel version, order, interpolation, side, label. Its probe
digest tells whether the stillroom that reads still replays as the one that wrote.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.digests import canonical_json
from stillroom.drawn_views import Peers, cell_bounds, draw_view, draw_views, identity_views
from stillroom.errors import StoreError
from stillroom.kernels.mixing import MIXES, anchor_weight
from stillroom.partners import mixed_in
from stillroom.replay import KERNEL, RANDAUGMENT_OPS, needs_partner, probe_digest, probes, replay, replay_alone
from stillroom.view_fields import VIEW_FIELDS, VIEW_TYPE, to_numbers, to_records
from stillroom.view_policy import DEFAULT_KINDS, KINDS, Kind, ViewPolicy

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "MOSAIC_GRID",
    "VIEW_TYPE",
    "Kind",
    "Peers",
    "ViewPolicy",
    "anchor_weights",
    "cell_bounds",
    "check_contract",
    "contract_of",
    "draw_view",
    "draw_views",
    "from_json",
    "identity_views",
    "label_of",
    "mixed_columns",
    "mixed_in",
    "mixes",
    "needs_partner",
    "probe_digest",
    "replay",
    "replay_alone",
    "to_numbers",
    "to_records",
    "view_contract",
    "views_field",
]

CONTRACT, PROBE, PROBES, LABEL = b"stillroom.views", b"stillroom.views_probe", b"stillroom.views_probes", b"stillroom.views_label"
# The column that says of a row how many whole images stand along each side of its image; null or 1: it is one image.
MOSAIC_GRID = "mosaic_grid"
HARD_LABEL = {"kind": "hard"}
# Of each kind beyond the first ones: the units of what a view stores, and the policy's strengths.
_UNITS: dict[str, dict[str, str]] = {
    "quarter_turns": {"quarter_turns": "90 degrees counter-clockwise"},
    "randaugment": {
        "randaugment": "uint8; op_1, magnitude_1, op_2, …",
        "op": f"0 to {len(RANDAUGMENT_OPS) - 1}: {', '.join(RANDAUGMENT_OPS)}",
        "magnitude": "2 x (0 to 30, as torchvision's), plus 1 the other way",
    },
    "jitter": {"jitter": "int16, little-endian; brightness, contrast, saturation in 1/1000, hue in 1/10 degree"},
    "random_field": {"random_field": "int8 [4, 4, 3], down, right, brighter; 127 is the contract's px and thousandths"},
    "erase": {"erase": "uint16, little-endian; y, x, h, w in px of the view"},
    "mix": {
        "mix": "uint16, little-endian; kind, view of the partner, the sample's own weight in 1/65535, y, x, h, w in px of the view",
        "kind": f"0 to {len(MIXES) - 1}: {', '.join(MIXES)}",
    },
    "permutation": {"permutation": "0 to 5: rgb, rbg, grb, gbr, brg, bgr"},
}
_STRENGTHS: dict[str, tuple[str, ...]] = {
    "quarter_turns": (),
    "randaugment": ("randaugment_ops", "randaugment_magnitude"),
    "jitter": ("jitter", "hue_deg"),
    "random_field": ("field_px", "field_brightness"),
    "erase": ("erase", "erase_scale", "erase_ratio", "erase_level"),
    "mix": ("mix", "mix_alpha"),
    "permutation": (),
}


def view_contract(policy: ViewPolicy) -> dict[str, Any]:
    """What a reader must know to replay: plain JSON. The policy is in it to be read by people."""
    contract: dict[str, Any] = {
        "kernel": KERNEL,
        "side_px": policy.side_px,
        "order": ["crop", "resize", "flip", "affine"],
        "interpolation": "triangle filter (resize), bilinear (affine), fixed point, edges repeated",
        "units": {"crop": "px", "shift": "1/256 px", "rotate": "1/100 degree counter-clockwise", "scale": "1/10000"},
        "policy": {
            "kinds": [kind for kind in KINDS if kind in policy.kinds],
            "crop_scale": list(policy.crop_scale),
            "crop_ratio": list(policy.crop_ratio),
            "flip": policy.flip,
            "shift_px": policy.shift_px,
            "rotate_deg": policy.rotate_deg,
            "scale": policy.scale,
            "scale_axes": policy.scale_axes,
        },
    }
    further = [kind for kind in VIEW_FIELDS if kind in policy.stored_kinds and kind not in DEFAULT_KINDS]
    contract["order"] += further
    for kind in further:
        contract["units"] |= _UNITS[kind]
        contract["policy"] |= {name: _plain(getattr(policy, name)) for name in _STRENGTHS[kind]}
    if "random_field" in further:
        contract["random_field"] = {"px": policy.field_px, "thousandths": round(1000 * policy.field_brightness)}
    if "erase" in further:
        contract["erase_level"] = policy.erase_level
    if policy.strength != (1.0, 1.0):
        contract["strength"] = list(policy.strength)
    return contract


def views_field(contract: Mapping[str, Any], label_type: pa.DataType | None = None, label: Mapping[str, Any] = HARD_LABEL, name: str = "views") -> pa.Field:
    """A column of views: list<struct<view parameters, soft_label>>, with contract, probe digests and label kind as metadata.

    Without a `label_type` the views have no `soft_label`: each has its row's own label.
    """
    kind = _view_type(contract)
    view = pa.struct([*kind, pa.field("soft_label", label_type)]) if label_type else kind
    metadata = {CONTRACT: canonical_json(contract), PROBE: probe_digest(contract).encode(), LABEL: canonical_json(label)}
    if kind != VIEW_TYPE:
        metadata[PROBES] = "".join(_each_probe(contract)).encode()
    return pa.field(name, pa.list_(view), metadata=metadata)


def mixes(kind: pa.StructType) -> bool:
    """Whether views of this type may mix in other samples or views, and so need partners."""
    return "mix" in kind.names


def mixed_columns(schema: pa.Schema) -> list[str]:
    """The columns of views that mix in other samples, or other views of their own."""
    return [field.name for field in schema if CONTRACT in (field.metadata or {}) and mixes(field.type.value_type)]


def anchor_weights(views: pa.StructArray, height: int, width: int) -> np.ndarray:
    """How much of each view is its own sample's, float64 [B]: what mixed hard labels are weighted by."""
    return anchor_weight(to_numbers(views), height, width)


def from_json(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Views as an export's JSON has them, bytes in hex, as the column that they were: `field` is that of the export's schema.

    Args:
        values: for each sample what its JSON has under the column's name, or None.
        field: the column.
    """
    return pa.array([_from_json(value, field.type) for value in values], field.type)


def contract_of(field: pa.Field) -> dict[str, Any]:
    """The contract of a column of views.

    Raises:
        StoreError: the field carries none.
    """
    return _metadata(field, CONTRACT)


def label_of(field: pa.Field) -> dict[str, Any]:
    """What the labels of a column of views are: `num_classes`, `top_k`, `temperature` of soft ones, `kind: hard` where a view has its row's own.

    Raises:
        StoreError: the field carries no label kind.
    """
    return _metadata(field, LABEL)


def check_contract(field: pa.Field) -> dict[str, Any]:
    """The contract of a column of views, once it is sure that this stillroom replays as the one that wrote them.

    Raises:
        StoreError: it doesn't.
    """
    contract = contract_of(field)
    stored, found = (field.metadata or {}).get(PROBE, b"").decode(), probe_digest(contract)
    if found != stored:
        raise StoreError(
            f"column '{field.name}'",
            f"replays otherwise than when it was made (probe {found[:12]}, stored {stored[:12]}{_how_many(field, contract)})",
            "use the stillroom that made it, or build it again",
        )
    return contract


def _how_many(field: pa.Field, contract: Mapping[str, Any]) -> str:
    """How many of the probe views differ, where the column tells of each."""
    told = field.metadata.get(PROBES, b"").decode()
    found = _each_probe(contract)
    if len(told) != sum(map(len, found)):
        return ""
    differ = sum(told[at * len(one) : (at + 1) * len(one)] != one for at, one in enumerate(found))
    return f"; {differ} of {len(found)} probe views differ"


def _each_probe(contract: Mapping[str, Any]) -> list[str]:
    """A digest of two bytes for each probe view."""
    return [blake3(b"".join(np.ascontiguousarray(pixels).tobytes() for pixels in sides)).hexdigest(length=2) for sides in zip(*probes(contract), strict=True)]


def _view_type(contract: Mapping[str, Any]) -> pa.StructType:
    told = contract["policy"]
    return ViewPolicy(kinds=tuple(told["kinds"]), randaugment_ops=told.get("randaugment_ops", 1)).view_type


def _from_json(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _from_json(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_from_json(one, kind.value_type) for one in value]
    return bytes.fromhex(value) if pa.types.is_fixed_size_binary(kind) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _metadata(field: pa.Field, key: bytes) -> dict[str, Any]:
    raw = (field.metadata or {}).get(key)
    if raw is None:
        raise StoreError(f"column '{field.name}'", f"lacks {key.decode()} in its metadata", "it is not a column of views")
    return dict(json.loads(raw))
