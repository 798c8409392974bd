"""Replay of stored views: the one implementation that teacher and trainer share, bit for bit.

A view is a struct of integers; replay turns an image and a view into pixels, in a fixed order: crop,
resize, flip, affine, quarter turns, RandAugment, jitter, random field, erase, mix, permutation of
channels. Everything is fixed-point arithmetic of our own on uint8 pixels (`stillroom.kernels`), so that
no version of Pillow, torchvision or a BLAS, no batch size and no machine changes a pixel. Whoever
changes a kernel raises `KERNEL`: `probe_digest` fails on stored views otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.digests import canonical_json
from stillroom.errors import StoreError
from stillroom.kernels import colour, geometry
from stillroom.kernels.mixing import MIXES, mix
from stillroom.view_fields import FIELD_GRID, VIEW_FIELDS, Views, as_stored, no_numbers, to_numbers, view_type

__all__ = [
    "KERNEL",
    "MAX_SIDE_PX",
    "RANDAUGMENT_OPS",
    "needs_partner",
    "probe_digest",
    "probes",
    "replay",
    "replay_alone",
]

# B = views of a batch, C = channels, H W = an image, N = ops of RandAugment, G = grid points along a side of a random field

KERNEL = 1
# Coordinates are int32 with 16 fraction bits: 8,192 px, turned and halved in scale, stay below 2^15.
MAX_SIDE_PX = 8192
MIN_SCALE = 5000
# RandAugment (arXiv 1909.13719), its ops by their number in a stored view, and torchvision's 31 magnitudes.
RANDAUGMENT_OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
MAGNITUDES = 31

_CHUNK_PIXELS = 1 << 17


def replay(
    pixels_BCHW: np.ndarray | Sequence[np.ndarray], views: pa.StructArray, contract: Mapping[str, Any], partners_BCHW: np.ndarray | None = None
) -> np.ndarray:
    """Turn B images and a view of each into what the teacher saw.

    Args:
        pixels_BCHW: uint8 [B, C, H, W], or B arrays [C, H, W] that differ in size.
        views: B views, structs of fields of `stillroom.view_fields.VIEW_FIELDS`; others (a soft label) are ignored.
        contract: what `stillroom.views.view_contract` gives; `kernel`, `side_px` and the strengths of fields and boxes are used.
        partners_BCHW: what is mixed in: `replay_alone` of each view's partner, uint8 of the shape that comes out. Only rows that
            `needs_partner` names are looked at.

    Returns:
        uint8 [B, C, side, side], or [B, C, H, W] where the contract's `side_px` is None.

    Raises:
        StoreError: views of another kernel, or drawn for images of another size; partners are needed and not given.
    """
    _require_kernel(contract)
    records = to_numbers(views)
    out = _alone(pixels_BCHW, records, contract)
    mixed = np.flatnonzero(needs_partner(views))
    if len(mixed):
        if partners_BCHW is None:
            raise StoreError(
                "views", f"mix in another image, {len(mixed)} of {len(out)}, and no partners were given", "read them through snapshot.torch or snapshot.stream"
            )
        out[mixed] = mix(out[mixed], np.asarray(partners_BCHW)[mixed], {name: records[name][mixed] for name in records if name.startswith("mix")})
    if "permutation" in records:
        if out.shape[1] != 3:
            raise StoreError("views", f"permute colours, and these images have {out.shape[1]} channels", "leave the kind permutation out")
        out = colour.permute(out, records["permutation"])
    return out


def replay_alone(pixels_BCHW: np.ndarray | Sequence[np.ndarray], views: pa.StructArray, contract: Mapping[str, Any]) -> np.ndarray:
    """As `replay`, up to mixing: what a partner gives to others. Arguments and errors as there."""
    _require_kernel(contract)
    return _alone(pixels_BCHW, to_numbers(views), contract)


def needs_partner(views: pa.StructArray) -> np.ndarray:
    """Which of B views mix another image in, or another view of their own; bool [B]."""
    return to_numbers(views)["mix"] > 0 if "mix" in views.type.names else np.zeros(len(views), bool)


def probe_digest(contract: Mapping[str, Any]) -> str:
    """Replay 64 fixed views of a fixed image and hash the pixels: the digest says which kernels are at work.

    Raises:
        StoreError: views of another kernel.
    """
    hasher = blake3()
    for side in probes(contract):
        hasher.update(side.tobytes())
    return hasher.hexdigest()


def probes(contract: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """What the 64 probe views show, uint8 [64, C, h, w]: at the contract's side, and at the image's own.

    Raises:
        StoreError: views of another kernel.
    """
    _require_kernel(contract)
    further = [kind for kind in VIEW_FIELDS if kind in contract.get("order", ()) and kind not in ("crop", "flip", "affine")]
    strengths = {name: contract[name] for name in ("random_field", "erase_level") if name in contract}
    return _probes(contract["side_px"], tuple(further), canonical_json(strengths))


def _alone(pixels_BCHW: np.ndarray | Sequence[np.ndarray], records: Views, contract: Mapping[str, Any]) -> np.ndarray:
    if isinstance(pixels_BCHW, np.ndarray):
        return _replay_equal(pixels_BCHW, records, contract)
    return _replay_mixed(pixels_BCHW, records, contract)


def _require_kernel(contract: Mapping[str, Any]) -> None:
    if contract["kernel"] != KERNEL:
        raise StoreError("views", f"were made by replay kernel {contract['kernel']}, and this stillroom has kernel {KERNEL}", "build them again")


@cache  # kernels don't change while a process lives, and a recipe asks for each stage with views
def _probes(side_px: int | None, further: tuple[str, ...], strengths: bytes) -> tuple[np.ndarray, ...]:
    height, width, count = 41, 53, 64
    # Quarter turns want a square.
    width = height if "quarter_turns" in further else width
    channels = 3 if further else 2
    y, x, channel = np.ogrid[:height, :width, :channels]
    # Smooth in one channel and rough in the others; integers only.
    image_HWC = np.where(channel == 0, (3 * y + 2 * x) % 256, (y * y * 7 + x * x * 11 + y * x * (3 + 2 * channel)) % 251)
    number = np.arange(count)
    crop_h, crop_w = height - number * 7 % 33, width - number * 5 % 40
    columns = {
        "crop_y": (height - crop_h) * (number % 5) // 4,
        "crop_x": (width - crop_w) * (number % 4) // 3,
        "crop_h": crop_h,
        "crop_w": crop_w,
        "flip": number % 2 == 1,
        "shift_y": number * 37 % 513 - 256,
        "shift_x": number * 91 % 1025 - 512,
        "rotate": (number * 131 % 3601 - 1800) * (number % 3 > 0),
        "scale_y": 10000 + number * 173 % 4001 - 2000,
        "scale_x": 10000 + number * 311 % 4001 - 2000,
        "quarter_turns": number % 4,
        "op_1": number % len(RANDAUGMENT_OPS),
        "magnitude_1": number * 11 % (2 * MAGNITUDES),
        "brightness": 600 + number * 13 % 801,
        "contrast": 600 + number * 29 % 801,
        "saturation": 600 + number * 41 % 801,
        "hue": number * 67 % 601 - 300,
        "mix": number % len(MIXES),
        "mix_weight": number * 1009 % 65536,
        "permutation": number % 6,
        "random_field": (number[:, None] * 31 + np.arange(3 * FIELD_GRID**2) * 57) % 255 - 127,
    }
    view = view_type(("crop", "flip", "affine", *further), randaugment_ops=1)
    pixels = np.broadcast_to(image_HWC.astype(np.uint8).transpose(2, 0, 1), (count, channels, height, width))
    shown = []
    # At the image's own size too: a side of 8 px would show little of a kernel.
    for side in (side_px, None):
        sides = (side, side) if side else (height, width)
        box = {"y": number % 5 * sides[0] // 9, "x": number % 7 * sides[1] // 11, "h": 1 + number % 3 * sides[0] // 7, "w": 1 + number % 4 * sides[1] // 9}
        boxes = {f"{kind}_{name}": values for kind in ("erase", "mix") for name, values in box.items()}
        kept = as_stored(no_numbers(view, (count,)) | columns | boxes, view)
        out = _replay_equal(pixels, kept, {"side_px": side, **json.loads(strengths)})
        out = mix(out, out[::-1], kept) if "mix" in further else out
        shown.append(colour.permute(out, kept["permutation"]) if "permutation" in further else out)
    return tuple(shown)


def _replay_mixed(images: Sequence[np.ndarray], records: Views, contract: Mapping[str, Any]) -> np.ndarray:
    """Replay images of different sizes, those of one size together."""
    side_px = contract["side_px"]
    shapes = [image_CHW.shape for image_CHW in images]
    if len({shape if side_px is None else shape[:1] for shape in shapes}) > 1:
        some = ", ".join(f"{channels}x{height}x{width}" for channels, height, width in sorted(set(shapes))[:3])
        raise StoreError("views", f"of images that differ can't be one batch (channels x height x width: {some})", "give side_px, and one number of channels")
    out: np.ndarray | None = None
    for shape in dict.fromkeys(shapes):
        rows = np.array([row for row, other in enumerate(shapes) if other == shape])
        part = _replay_equal(np.stack([images[row] for row in rows]), {name: values[rows] for name, values in records.items()}, contract)
        out = np.empty((len(images), *part.shape[1:]), np.uint8) if out is None else out
        out[rows] = part
    return np.zeros((0, 1, side_px or 1, side_px or 1), np.uint8) if out is None else out


def _replay_equal(pixels_BCHW: np.ndarray, records: Views, contract: Mapping[str, Any]) -> np.ndarray:
    count, channels, height, width = pixels_BCHW.shape
    out_height, out_width = contract["side_px"] or height, contract["side_px"] or width
    _check(records, height, width, (out_height, out_width))
    out = np.empty((count, channels, out_height, out_width), np.uint8)
    # Small images go together, large ones one by one; the pixels are the same for any cut.
    step = max(1, _CHUNK_PIXELS // (channels * max(height, out_height) * max(width, out_width)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part = {name: values[rows] for name, values in records.items()}
        placed = _placed(pixels_BCHW[rows], part, out_height, out_width)
        out[rows] = _coloured(placed, part, contract)
    return out


def _placed(pixels_BCHW: np.ndarray, part: Views, height: int, width: int) -> np.ndarray:
    """Crop, resize, flip, affine, quarter turns; always a copy."""
    if pixels_BCHW.shape[2:] == (height, width):
        out = pixels_BCHW.copy()
        cropped = np.flatnonzero((part["crop_h"] != height) | (part["crop_w"] != width))
    else:
        out = np.empty((*pixels_BCHW.shape[:2], height, width), np.uint8)
        cropped = np.arange(len(out))
    if len(cropped):
        out[cropped] = geometry.crop_and_resize(pixels_BCHW[cropped], _of(part, cropped), height, width)
    if "flip" in part:
        flipped = np.flatnonzero(part["flip"])
        out[flipped] = out[flipped, :, :, ::-1]
    if "rotate" in part:
        still = (part["shift_y"] == 0) & (part["shift_x"] == 0) & (part["rotate"] == 0) & (part["scale_y"] == 10000) & (part["scale_x"] == 10000)
        moved = np.flatnonzero(~still)
        if len(moved):
            out[moved] = geometry.affine(out[moved], _of(part, moved))
    return geometry.quarter_turns(out, part["quarter_turns"]) if "quarter_turns" in part else out


def _coloured(pixels_BCHW: np.ndarray, part: Views, contract: Mapping[str, Any]) -> np.ndarray:
    """RandAugment, jitter, random field, erase; may overwrite what it is given."""
    out = pixels_BCHW
    step = 1
    while f"op_{step}" in part:
        out = _randaugmented(out, part[f"op_{step}"], part[f"magnitude_{step}"].astype(np.int64))
        step += 1
    if "hue" in part:
        out = colour.jitter(out, part["brightness"], part["contrast"], part["saturation"], part["hue"])
    if "random_field" in part:
        moved = np.flatnonzero(part["random_field"].any(axis=(1, 2, 3)))
        if len(moved):
            grid_BGG3, told = part["random_field"][moved], contract["random_field"]
            brighter_Bhw = geometry.smooth(grid_BGG3[..., 2:], *out.shape[2:])[..., 0]
            out[moved] = colour.shade(geometry.displace(out[moved], grid_BGG3[..., :2], told["px"]), brighter_Bhw, told["thousandths"])
    if "erase_h" in part:
        out = colour.erase(out, np.stack([part[f"erase_{name}"] for name in "yxhw"], axis=1), contract["erase_level"])
    return out


def _randaugmented(pixels_BCHW: np.ndarray, op_B: np.ndarray, magnitude_B: np.ndarray) -> np.ndarray:
    """One step of RandAugment, each image by its own op."""
    out = pixels_BCHW
    size_B, negative_B = magnitude_B >> 1, (magnitude_B & 1).astype(bool)
    for op in np.unique(op_B):
        rows, name = np.flatnonzero(op_B == op), RANDAUGMENT_OPS[op]
        if name == "identity":
            continue
        if name.startswith(("shear", "translate", "rotate")):
            out[rows] = _turned(out[rows], name, np.where(negative_B, -size_B, size_B)[rows])
        else:
            out[rows] = colour.randaugment_colour(out[rows], name, size_B[rows], negative_B[rows])
    return out


def _turned(pixels_BCHW: np.ndarray, name: str, signed_B: np.ndarray) -> np.ndarray:
    """RandAugment's ops on geometry, at torchvision's magnitudes: shear to 0.3, shift to 150/331 of the side, rotation to 30 degrees."""
    height, width = pixels_BCHW.shape[2:]
    zero_B, one_B = np.zeros(len(signed_B)), np.ones(len(signed_B))
    down_B, right_B = zero_B, zero_B
    y_from, x_from = (one_B, zero_B, one_B), (zero_B, one_B, one_B)
    if name == "rotate":
        cosine_B, sine_B = geometry.cosine_sine(signed_B * 100)
        y_from, x_from = (cosine_B, sine_B, one_B), (-sine_B, cosine_B, one_B)
    elif name == "shear_x":
        x_from = (-signed_B / 100, one_B, one_B)
    elif name == "shear_y":
        y_from = (one_B, -signed_B / 100, one_B)
    elif name == "translate_x":
        right_B = signed_B * (150 * width) / (331 * 30)
    else:
        down_B = signed_B * (150 * height) / (331 * 30)
    return geometry.move(pixels_BCHW, (y_from, x_from), down_B, right_B)


def _of(part: Views, rows: np.ndarray) -> Views:
    return {name: values[rows] for name, values in part.items()}


def _check(records: Views, height: int, width: int, out_px: tuple[int, int]) -> None:
    """Raise unless all crops lie inside the image and all numbers inside what the kernels can hold."""
    if max(out_px) > MAX_SIDE_PX:
        raise StoreError("views", f"of {max(out_px)} px a side are too large: {MAX_SIDE_PX} is the limit", "give side_px")
    y, x, h, w = (records[f"crop_{name}"].astype(np.int64) for name in "yxhw")
    outside = (y < 0) | (x < 0) | (h < 1) | (w < 1) | (y + h > height) | (x + w > width)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        crop = f"crop of {w[at]}x{h[at]} px at ({x[at]}, {y[at]})"
        raise StoreError("views", f"a {crop} lies outside an image of {width}x{height} px", "these are not the images that the views were drawn for")
    if "quarter_turns" in records and out_px[0] != out_px[1]:
        raise StoreError("views", f"of {out_px[1]}x{out_px[0]} px can't be turned by quarters", "give side_px, and all are squares")
    if "scale_y" in records and (np.minimum(records["scale_y"], records["scale_x"]) < MIN_SCALE).any():
        raise StoreError("views", f"scale below {MIN_SCALE} / 10000", "build them again")
