"""Resizing: one triangle filter for whole images, exact in float32."""

from functools import lru_cache

import numpy as np

__all__ = ["resize"]

# B = images, C = channels, H W = an image

_WEIGHT_BITS = 16


def resize(pixels_BCHW: np.ndarray, side_px: int, width_px: int | None = None) -> np.ndarray:
    """Resize to a square, or to `side_px` rows of `width_px`, with a triangle filter, widened when shrinking; uint8 [B, C, side, side].

    Our own, in NumPy, and the same to the bit on every machine: the weights are integers that sum to
    2^16, so that each sum is a whole number below 2^24, which float32 holds exactly in any order of
    adding. Within two grey levels of Pillow's bilinear `resize`: both round after each of two passes, halves not alike.
    """
    size = side_px, side_px if width_px is None else width_px
    if pixels_BCHW.shape[2:] == size:
        return pixels_BCHW
    down_H, across_W = (_weights(old, new) for old, new in zip(pixels_BCHW.shape[2:], size, strict=True))
    out = np.empty((*pixels_BCHW.shape[:2], *size), np.uint8)
    for index, pixels_CHW in enumerate(pixels_BCHW):  # one at a time: float32 takes four times the room
        narrowed = _rounded(pixels_CHW.astype(np.float32) @ across_W.T)
        out[index] = _rounded(down_H @ narrowed.astype(np.float32))
    return out


@lru_cache(maxsize=256)
def _weights(size: int, side_px: int) -> np.ndarray:
    """Weights of the triangle filter, float32 [side_px, size], whole numbers, each row summing to 2^16."""
    # Distances between pixel centres, in units of 1 / (2 side_px) input pixels: all integers.
    at_source, at_target = 2 * np.arange(size) + 1, 2 * np.arange(side_px) + 1
    distance = np.abs(at_source[None, :] * side_px - at_target[:, None] * size)
    raw = np.maximum(0, 2 * max(size, side_px) - distance)
    whole = (raw << _WEIGHT_BITS) // raw.sum(axis=1, keepdims=True)
    whole[np.arange(side_px), whole.argmax(axis=1)] += (1 << _WEIGHT_BITS) - whole.sum(axis=1)
    weights: np.ndarray = whole.astype(np.float32)
    return weights


def _rounded(sums: np.ndarray) -> np.ndarray:
    return ((sums.astype(np.int32) + (1 << (_WEIGHT_BITS - 1))) >> _WEIGHT_BITS).astype(np.uint8)
