"""Replay of stored views: the one implementation that teacher and trainer share, bit for bit.

A view is a struct of integers (`VIEW_TYPE`); replay turns an image and a view into pixels, in a fixed
order: crop, resize, flip, affine. Everything is fixed-point arithmetic of our own on uint8 pixels, so
that no version of Pillow, torchvision or a BLAS, no batch size and no machine changes a pixel. Whoever
changes a kernel raises `KERNEL`: `probe_digest` fails on stored views otherwise.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.errors import StoreError

__all__ = ["KERNEL", "MAX_SIDE_PX", "VIEW_TYPE", "probe_digest", "replay"]

# B = views of a batch, C = channels, H W = an image, h w = what comes out, s = one side of it, T = taps, U = distinct crops along an axis

KERNEL = 1
# Coordinates are int32 with 16 fraction bits: 8,192 px, turned and halved in scale, stay below 2^15.
MAX_SIDE_PX = 8192
MIN_SCALE = 5000

VIEW_TYPE = pa.struct(
    [
        pa.field("crop_y", pa.int32()),  # px of the upright image
        pa.field("crop_x", pa.int32()),
        pa.field("crop_h", pa.int32()),
        pa.field("crop_w", pa.int32()),
        pa.field("flip", pa.bool_()),  # left and right swapped
        pa.field("shift_y", pa.int16()),  # 1/256 px of the resized image, down
        pa.field("shift_x", pa.int16()),  # 1/256 px, to the right
        pa.field("rotate", pa.int16()),  # 1/100 degree, counter-clockwise, about the centre
        pa.field("scale_y", pa.int16()),  # 1/10000, above 10000 enlarges; before the rotation
        pa.field("scale_x", pa.int16()),
    ]
)
Views = dict[str, np.ndarray]

_WEIGHT_BITS, _BETWEEN_BITS = 16, 6
_COORDINATE_BITS, _FRACTION_BITS = 16, 11
_CHUNK_PIXELS = 1 << 17


def replay(pixels_BCHW: np.ndarray | Sequence[np.ndarray], views: pa.StructArray, contract: Mapping[str, Any]) -> np.ndarray:
    """Turn B images and a view of each into what the teacher saw.

    Args:
        pixels_BCHW: uint8 [B, C, H, W], or B arrays [C, H, W] that differ in size.
        views: B views, with the fields of `VIEW_TYPE`; others (a soft label) are ignored.
        contract: what `stillroom.views.view_contract` gives; `kernel` and `side_px` are used.

    Returns:
        uint8 [B, C, side, side], or [B, C, H, W] where the contract's `side_px` is None.

    Raises:
        StoreError: views of another kernel, or drawn for images of another size.
    """
    _require_kernel(contract)
    records = {field.name: views.field(field.name).to_numpy(zero_copy_only=False) for field in VIEW_TYPE}
    side_px = contract["side_px"]
    if isinstance(pixels_BCHW, np.ndarray):
        return _replay_equal(pixels_BCHW, records, side_px)
    return _replay_mixed(pixels_BCHW, records, side_px)


def probe_digest(contract: Mapping[str, Any]) -> str:
    """Replay 64 fixed views of a fixed image and hash the pixels: the digest says which kernels are at work.

    Raises:
        StoreError: views of another kernel.
    """
    _require_kernel(contract)
    return _probe(contract["side_px"])


def _require_kernel(contract: Mapping[str, Any]) -> None:
    if contract["kernel"] != KERNEL:
        raise StoreError("views", f"were made by replay kernel {contract['kernel']}, and this stillroom has kernel {KERNEL}", "build them again")


@cache  # kernels don't change while a process lives, and a recipe asks for each stage with views
def _probe(side_px: int | None) -> str:
    height, width, count = 41, 53, 64
    y, x, channel = np.ogrid[:height, :width, :2]
    # Smooth in one channel and rough in the other; integers only.
    image_HWC = np.where(channel == 0, (3 * y + 2 * x) % 256, (y * y * 7 + x * x * 11 + y * x * 5) % 251)
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
    }
    records = {field.name: columns[field.name].astype(field.type.to_pandas_dtype()) for field in VIEW_TYPE}
    pixels = np.broadcast_to(image_HWC.astype(np.uint8).transpose(2, 0, 1), (count, 2, height, width))
    hasher = blake3()
    # At the image's own size too: a side of 8 px would show little of a kernel.
    for side in (side_px, None):
        hasher.update(_replay_equal(pixels, records, side).tobytes())
    return hasher.hexdigest()


def _replay_mixed(images: Sequence[np.ndarray], records: Views, side_px: int | None) -> np.ndarray:
    """Replay images of different sizes, those of one size together."""
    shapes = [image_CHW.shape for image_CHW in images]
    if len({shape if side_px is None else shape[:1] for shape in shapes}) > 1:
        some = ", ".join(f"{channels}x{height}x{width}" for channels, height, width in sorted(set(shapes))[:3])
        raise StoreError("views", f"of images that differ can't be one batch (channels x height x width: {some})", "give side_px, and one number of channels")
    out: np.ndarray | None = None
    for shape in dict.fromkeys(shapes):
        rows = np.array([row for row, other in enumerate(shapes) if other == shape])
        part = _replay_equal(np.stack([images[row] for row in rows]), {name: values[rows] for name, values in records.items()}, side_px)
        out = np.empty((len(images), *part.shape[1:]), np.uint8) if out is None else out
        out[rows] = part
    return np.zeros((0, 1, side_px or 1, side_px or 1), np.uint8) if out is None else out


def _replay_equal(pixels_BCHW: np.ndarray, records: Views, side_px: int | None) -> np.ndarray:
    count, channels, height, width = pixels_BCHW.shape
    out_height, out_width = side_px or height, side_px or width
    _check(records, height, width, max(out_height, out_width))
    out = np.empty((count, channels, out_height, out_width), np.uint8)
    # Small images go together, large ones one by one; the pixels are the same for any cut.
    step = max(1, _CHUNK_PIXELS // (channels * max(height, out_height) * max(width, out_width)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part = {name: values[rows] for name, values in records.items()}
        out[rows] = _replay_chunk(pixels_BCHW[rows], part, out_height, out_width)
    return out


def _replay_chunk(pixels_BCHW: np.ndarray, part: Views, height: int, width: int) -> np.ndarray:
    if pixels_BCHW.shape[2:] == (height, width):
        out = pixels_BCHW.copy()
        cropped = np.flatnonzero((part["crop_h"] != height) | (part["crop_w"] != width))
    else:
        out = np.empty((*pixels_BCHW.shape[:2], height, width), np.uint8)
        cropped = np.arange(len(out))
    if len(cropped):
        out[cropped] = _crop_and_resize(pixels_BCHW[cropped], {name: values[cropped] for name, values in part.items()}, height, width)
    flipped = np.flatnonzero(part["flip"])
    out[flipped] = out[flipped, :, :, ::-1]
    still = (part["shift_y"] == 0) & (part["shift_x"] == 0) & (part["rotate"] == 0) & (part["scale_y"] == 10000) & (part["scale_x"] == 10000)
    moved = np.flatnonzero(~still)
    if len(moved):
        out[moved] = _affine(out[moved], {name: values[moved] for name, values in part.items()})
    return out


def _check(records: Views, height: int, width: int, largest_px: int) -> None:
    """Raise unless all crops lie inside the image and all numbers inside what the kernels can hold."""
    if largest_px > MAX_SIDE_PX:
        raise StoreError("views", f"of {largest_px} px a side are too large: {MAX_SIDE_PX} is the limit", "give side_px")
    y, x, h, w = (records[f"crop_{name}"].astype(np.int64) for name in "yxhw")
    outside = (y < 0) | (x < 0) | (h < 1) | (w < 1) | (y + h > height) | (x + w > width)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        crop = f"crop of {w[at]}x{h[at]} px at ({x[at]}, {y[at]})"
        raise StoreError("views", f"a {crop} lies outside an image of {width}x{height} px", "these are not the images that the views were drawn for")
    if (np.minimum(records["scale_y"], records["scale_x"]) < MIN_SCALE).any():
        raise StoreError("views", f"scale below {MIN_SCALE} / 10000", "build them again")


def _crop_and_resize(pixels_BCHW: np.ndarray, part: Views, height: int, width: int) -> np.ndarray:
    """Cut out and resize with a triangle filter: bilinear where it enlarges, an average where it shrinks.

    Down, then across. Sums stay below 255 * 2^(6 + 16) + 2^21, so they fit int32; no BLAS, whose threads would
    multiply with a loader's workers.
    """
    top, left = part["crop_y"].min(), part["crop_x"].min()
    bottom, right = (part["crop_y"] + part["crop_h"]).max(), (part["crop_x"] + part["crop_w"]).max()
    window_BCHW = pixels_BCHW[:, :, top:bottom, left:right].astype(np.int32)
    sums_BChW = _weighted_rows(window_BCHW, *_taps(part["crop_y"] - top, part["crop_h"], height))
    sums_BChW += 1 << (_WEIGHT_BITS - _BETWEEN_BITS - 1)
    sums_BChW >>= _WEIGHT_BITS - _BETWEEN_BITS
    sums_BCwh = _weighted_rows(np.ascontiguousarray(sums_BChW.swapaxes(2, 3)), *_taps(part["crop_x"] - left, part["crop_w"], width))
    sums_BCwh += 1 << (_WEIGHT_BITS + _BETWEEN_BITS - 1)
    sums_BCwh >>= _WEIGHT_BITS + _BETWEEN_BITS
    return sums_BCwh.swapaxes(2, 3).astype(np.uint8)


def _weighted_rows(pixels_BCHW: np.ndarray, index_BhT: np.ndarray, weight_BhT: np.ndarray) -> np.ndarray:
    """Each new row as a weighted sum of T old ones, int32 [B, C, h, W]."""
    count, channels, height, width = pixels_BCHW.shape
    rows = pixels_BCHW.reshape(-1, width)
    first_BC1 = (np.arange(count * channels) * height).reshape(count, channels, 1)
    sums = np.zeros((count, channels, index_BhT.shape[1], width), np.int32)
    for tap in range(index_BhT.shape[2]):
        taken = rows.take(first_BC1 + index_BhT[:, None, :, tap], axis=0)
        taken *= weight_BhT[:, None, :, tap, None]
        sums += taken
    return sums


def _taps(starts_B: np.ndarray, sizes_B: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle filter of each crop along one axis: which pixels, int64 [B, side, T], and their weights, int32, summing to 2^16."""
    # Crops repeat: along an axis of small images there are few different ones.
    keys, which_B = np.unique(starts_B.astype(np.int64) << 32 | sizes_B, return_inverse=True)
    start, size = (keys >> 32)[:, None, None], (keys & 0xFFFFFFFF)[:, None, None]
    # Distances between centres of pixels, in 1 / (2 side) source pixels: all whole numbers.
    reach, centre = 2 * np.maximum(size, side), (2 * np.arange(side)[:, None] + 1) * size
    first = (centre - reach - side) // (2 * side) + 1
    at_UsT = first + np.arange(-(-reach.max() // side))
    raw_UsT = np.maximum(reach - np.abs((2 * at_UsT + 1) * side - centre), 0) * ((at_UsT >= 0) & (at_UsT < size))
    total = raw_UsT.sum(axis=2, keepdims=True)
    weights = (raw_UsT * (2 << _WEIGHT_BITS) + total) // (2 * total)
    # What rounding lost or won goes to the heaviest pixel, so that a flat image stays flat.
    heaviest = weights.argmax(axis=2)[..., None]
    rest = (1 << _WEIGHT_BITS) - weights.sum(axis=2, keepdims=True)
    np.put_along_axis(weights, heaviest, np.take_along_axis(weights, heaviest, 2) + rest, 2)
    return (start + np.clip(at_UsT, 0, size - 1))[which_B], weights.astype(np.int32)[which_B]


def _affine(pixels_BCHW: np.ndarray, part: Views) -> np.ndarray:
    """Scale, rotate and shift about the centre, bilinear; what comes from outside repeats the edge."""
    count, channels, height, width = pixels_BCHW.shape
    y_Bhw, x_Bhw = _sources(part, height, width)
    fraction = (1 << _FRACTION_BITS) - 1
    right_Bhw, down_Bhw = ((at >> (_COORDINATE_BITS - _FRACTION_BITS)) & fraction for at in (x_Bhw, y_Bhw))
    corner_Bhw = (y_Bhw >> _COORDINATE_BITS) * width + (x_Bhw >> _COORDINATE_BITS)
    corner_Bhw = corner_Bhw + np.arange(count, dtype=np.intp)[:, None, None] * (height * width)
    out = np.empty_like(pixels_BCHW)
    for channel in range(channels):
        # A pixel, its right, lower and lower right neighbours in one word: one random access instead of four.
        padded = np.pad(pixels_BCHW[:, channel], ((0, 0), (0, 1), (0, 1)), mode="edge").astype(np.int32)
        words = padded[:, :-1, :-1] | padded[:, :-1, 1:] << 8 | padded[:, 1:, :-1] << 16 | padded[:, 1:, 1:] << 24
        near = words.ravel().take(corner_Bhw)
        upper = _between(near & 255, near >> 8 & 255, right_Bhw)
        lower = _between(near >> 16 & 255, near >> 24 & 255, right_Bhw)
        # Below 255 * 2^22 + 2^21: it fits int32, and is rounded once.
        sums = _between(upper, lower, down_Bhw)
        sums += 1 << (2 * _FRACTION_BITS - 1)
        out[:, channel] = sums >> 2 * _FRACTION_BITS
    return out


def _sources(part: Views, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel comes from: y and x, int32 [B, H, W], in 1/65536 px, within the image."""
    cosine, sine = (values[:, None] for values in _cosine_sine(part["rotate"]))
    scale_y, scale_x = part["scale_y"][:, None] / 10000.0, part["scale_x"][:, None] / 10000.0
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y_BH = np.arange(height) - centre_y - part["shift_y"][:, None] / 256.0
    x_BW = np.arange(width) - centre_x - part["shift_x"][:, None] / 256.0
    y_Bhw = _fixed(y_BH * cosine / scale_y + centre_y)[:, :, None] + _fixed(x_BW * sine / scale_y)[:, None, :]
    x_Bhw = _fixed(-y_BH * sine / scale_x)[:, :, None] + _fixed(x_BW * cosine / scale_x + centre_x)[:, None, :]
    np.clip(y_Bhw, 0, (height - 1) << _COORDINATE_BITS, out=y_Bhw)
    np.clip(x_Bhw, 0, (width - 1) << _COORDINATE_BITS, out=x_Bhw)
    return y_Bhw, x_Bhw


def _cosine_sine(hundredths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angles in 1/100 degree, float64 [B], from sums and products alone.

    NumPy's own differ in the last bit between processors. Taylor's series to the 17th power of at
    most 45 degrees leaves nothing that float64 shows; quarter turns are exact.
    """
    hundredths = hundredths_B.astype(np.int64)
    quarters = (hundredths + 4500) // 9000
    angle = (hundredths - 9000 * quarters) * (np.pi / 18000)
    square = angle * angle
    cosine, sine = np.ones_like(angle), np.ones_like(angle)
    for power in range(16, 0, -2):
        cosine = 1 - cosine * square / (power * (power - 1))
        sine = 1 - sine * square / (power * (power + 1))
    sine = sine * angle
    turns = quarters % 4
    return (
        np.choose(turns, [cosine, -sine, -cosine, sine]),
        np.choose(turns, [sine, cosine, -sine, -cosine]),
    )


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.rint(values * (1 << _COORDINATE_BITS)).astype(np.int32)


def _between(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """first + (second - first) * fraction, in units of the fraction; overwrites both."""
    second -= first
    second *= fraction
    first <<= _FRACTION_BITS
    first += second
    return first
