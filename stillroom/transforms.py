"""Transforms that a net may be asked for beside the class: quarter turns of squares, permutations of three channels.

Self-supervised label augmentation (Lee, Hwang, Shin: arXiv 1910.05872) learns class y and transform t of M as one
label, M y + t. The pixels are those of `stillroom.replay`, so a stored view of these kinds shows what a net learnt.
"""

from typing import Literal

import numpy as np
import pyarrow as pa

from stillroom.kernels import colour, geometry

__all__ = ["COUNTS", "Transforms", "transformed", "transforms_of"]

# B = images, C H W = an image

Transforms = Literal["quarter_turns", "permutation"]
COUNTS: dict[Transforms, int] = {"quarter_turns": 4, "permutation": len(colour.PERMUTATIONS)}


def transformed(pixels_BCHW: np.ndarray, kind: Transforms, transform: int) -> np.ndarray:
    """All images in one transform, uint8 [B, C, H, W]; 0 leaves them as they are."""
    transform_B = np.full(len(pixels_BCHW), transform)
    return geometry.quarter_turns(pixels_BCHW, transform_B) if kind == "quarter_turns" else colour.permute(pixels_BCHW, transform_B)


def transforms_of(views: pa.StructArray) -> np.ndarray | None:
    """The transform of each of B views, int64 [B]; None where they have neither kind, and 6 * turns + permutation where both."""
    found_B = None
    for kind, count in COUNTS.items():
        if kind in views.type.names:
            own_B = views.field(kind).to_numpy(zero_copy_only=False).astype(np.int64)
            found_B = own_B if found_B is None else count * found_B + own_B
    return found_B
