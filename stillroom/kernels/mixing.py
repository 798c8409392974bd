"""Mixing: two images become one, in whole numbers; which image counts how much is told by the same numbers."""

from collections.abc import Mapping

import numpy as np

from stillroom.kernels.resizing import resize

__all__ = ["MIXES", "anchor_weight", "mix"]

# B = images, C = channels, H W = an image

Part = Mapping[str, np.ndarray]
# By their number in a stored view.
MIXES = ("none", "mixup", "cutmix", "resizemix", "selfmix")
FULL_WEIGHT = 65535


def mix(pixels_BCHW: np.ndarray, partners_BCHW: np.ndarray, part: Part) -> np.ndarray:
    """Mix each image with its partner as `part` says; both are uint8 of one shape.

    mixup: a weighted mean (arXiv 1710.09412). cutmix and selfmix: a box of the partner at its own place
    (arXiv 1905.04899, 2312.17473). resizemix: the whole partner, resized into the box (arXiv 2012.11101).
    """
    out = pixels_BCHW.copy()
    kind_B = part["mix"]
    blended = np.flatnonzero(kind_B == MIXES.index("mixup"))
    weight_B111 = part["mix_weight"][blended].astype(np.int32)[:, None, None, None]
    sums = pixels_BCHW[blended] * weight_B111 + partners_BCHW[blended] * (FULL_WEIGHT - weight_B111)
    out[blended] = (sums + FULL_WEIGHT // 2) // FULL_WEIGHT
    boxes_B4 = np.stack([part[f"mix_{name}"] for name in "yxhw"], axis=1).astype(np.int64)
    for at in np.flatnonzero((kind_B > 0) & (kind_B != MIXES.index("mixup"))):
        y, x, h, w = boxes_B4[at]
        pasted = resize(partners_BCHW[at][None], int(h), int(w))[0] if kind_B[at] == MIXES.index("resizemix") else partners_BCHW[at][:, y : y + h, x : x + w]
        out[at, :, y : y + h, x : x + w] = pasted
    return out


def anchor_weight(part: Part, height: int, width: int) -> np.ndarray:
    """How much of each mixed image is its own, float64 [B], 1 where nothing is mixed in: the weight, or what the box leaves of the area."""
    box_B = part["mix_h"].astype(np.int64) * part["mix_w"] / (height * width)
    by_kind = np.where(part["mix"] == MIXES.index("mixup"), part["mix_weight"] / FULL_WEIGHT, 1 - box_B)
    return np.where(part["mix"] == 0, 1.0, by_kind)
