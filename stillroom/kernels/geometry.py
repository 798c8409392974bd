"""Geometry: crop and resize, affine moves, smooth random displacements.

Sums are whole numbers that fit their words, so no order of adding, no BLAS and no processor changes a pixel.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["affine", "cosine_sine", "crop_and_resize", "displace", "move", "quarter_turns", "smooth"]

# B = images, C = channels, H W = an image, h w = what comes out, s = one side of it, T = taps, U = distinct crops along an axis,
# G = grid points along a side of a random field

Part = Mapping[str, np.ndarray]

_WEIGHT_BITS, _BETWEEN_BITS = 16, 6
_COORDINATE_BITS, _FRACTION_BITS = 16, 11


def crop_and_resize(pixels_BCHW: np.ndarray, part: Part, height: int, width: int) -> np.ndarray:
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


def affine(pixels_BCHW: np.ndarray, part: Part) -> np.ndarray:
    """Scale, rotate and shift about the centre, bilinear; what comes from outside repeats the edge."""
    cosine_B, sine_B = cosine_sine(part["rotate"])
    by_y, by_x = part["scale_y"] / 10000.0, part["scale_x"] / 10000.0
    return move(pixels_BCHW, ((cosine_B, sine_B, by_y), (-sine_B, cosine_B, by_x)), part["shift_y"] / 256.0, part["shift_x"] / 256.0)


def move(
    pixels_BCHW: np.ndarray,
    source: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
    down_B: np.ndarray,
    right_B: np.ndarray,
) -> np.ndarray:
    """Any linear move about the centre, then `down_B` and `right_B` pixels further.

    Args:
        source: where a pixel comes from, for y and for x: what y and x count there, and by what both are divided; float64 [B] each.
    """
    height, width = pixels_BCHW.shape[2:]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y_BH = np.arange(height) - centre_y - down_B[:, None]
    x_BW = np.arange(width) - centre_x - right_B[:, None]
    (yy_B, yx_B, y_by_B), (xy_B, xx_B, x_by_B) = source
    y_Bhw = _fixed(y_BH * yy_B[:, None] / y_by_B[:, None] + centre_y)[:, :, None] + _fixed(x_BW * yx_B[:, None] / y_by_B[:, None])[:, None, :]
    x_Bhw = _fixed(y_BH * xy_B[:, None] / x_by_B[:, None])[:, :, None] + _fixed(x_BW * xx_B[:, None] / x_by_B[:, None] + centre_x)[:, None, :]
    return _warp(pixels_BCHW, y_Bhw, x_Bhw)


def quarter_turns(pixels_BCHW: np.ndarray, turns_B: np.ndarray) -> np.ndarray:
    """Turn square images counter-clockwise by 90 degrees, `turns_B` times."""
    out = pixels_BCHW.copy()
    for turns in (1, 2, 3):
        rows = np.flatnonzero(turns_B == turns)
        out[rows] = np.rot90(pixels_BCHW[rows], turns, axes=(2, 3))
    return out


def displace(pixels_BCHW: np.ndarray, grid_BGG2: np.ndarray, px: float) -> np.ndarray:
    """Move each pixel down and right as a smooth field says: grid points int8, 127 for `px` pixels; bilinear, the edge repeated."""
    height, width = pixels_BCHW.shape[2:]
    shift_Bhw2 = np.rint(smooth(grid_BGG2, height, width) * (px * (1 << _COORDINATE_BITS) / (127 << 20))).astype(np.int32)
    y_Bhw = (np.arange(height, dtype=np.int32) << _COORDINATE_BITS)[None, :, None] + shift_Bhw2[..., 0]
    x_Bhw = (np.arange(width, dtype=np.int32) << _COORDINATE_BITS)[None, None, :] + shift_Bhw2[..., 1]
    return _warp(pixels_BCHW, y_Bhw, x_Bhw)


def smooth(grid_BGGn: np.ndarray, height: int, width: int) -> np.ndarray:
    """Join grid points by a cubic B-spline; float64 [B, h, w, n] in units of 2^-20 of theirs."""
    # Whole numbers below 2^53, so exact in any order; a BLAS, whose threads would multiply with a loader's workers, isn't asked.
    down_BhGn = np.einsum("hg,bgkn->bhkn", _spline(height, grid_BGGn.shape[1]), grid_BGGn.astype(np.float64))
    return np.einsum("bhkn,wk->bhwn", down_BhGn, _spline(width, grid_BGGn.shape[2]))


def _spline(size: int, points: int) -> np.ndarray:
    """Weights of the points for each of `size` pixels, whole numbers [size, G], each row summing to 2^10."""
    at = (np.arange(size) + 0.5) * points / size - 0.5
    distance = np.abs(at[:, None] - np.arange(points))
    # Products, not powers: those differ in the last bit between C libraries.
    near = 2 / 3 - distance * distance + distance * distance * distance / 2
    beyond = np.maximum(2 - distance, 0)
    weights = np.where(distance < 1, near, beyond * beyond * beyond / 6)
    whole = np.floor(weights / weights.sum(axis=1, keepdims=True) * 1024)
    whole[np.arange(size), whole.argmax(axis=1)] += 1024 - whole.sum(axis=1)
    return whole


def _warp(pixels_BCHW: np.ndarray, y_Bhw: np.ndarray, x_Bhw: np.ndarray) -> np.ndarray:
    """Take each pixel from where y and x say, int32 in 1/65536 px, bilinear; overwrites both."""
    count, channels, height, width = pixels_BCHW.shape
    np.clip(y_Bhw, 0, (height - 1) << _COORDINATE_BITS, out=y_Bhw)
    np.clip(x_Bhw, 0, (width - 1) << _COORDINATE_BITS, out=x_Bhw)
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


def cosine_sine(hundredths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
