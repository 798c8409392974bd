"""Differentiable siamese augmentation (DSA): drawn as numbers first, applied as often as wanted.

Zhao and Bilen, arXiv 2102.08259, with the strengths of the trajectory-matching papers. Importing this loads no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DSA_OPS", "Dsa", "DsaOp", "apply_dsa", "draw_dsa"]

# B = images, C H W = image

DsaOp = Literal["color", "shift", "cutout", "flip", "scale", "rotate"]
DSA_OPS: tuple[DsaOp, ...] = get_args(DsaOp)

BRIGHTNESS = 0.5  # added, at most, to either side
SATURATION = (0.0, 2.0)  # factor on what differs from the mean of the channels
CONTRAST = (0.5, 1.5)  # factor on what differs from the mean of the image
SHIFT = 0.125  # part of the side
CUTOUT = 0.5  # part of the side
FLIP = 0.5  # how often
SCALE = 1.2  # largest factor along an axis, its inverse the smallest
ROTATE_DEG = 15.0
NUMBERS = 3  # of an image, whatever the operation


@dataclass(frozen=True)
class Dsa:
    """One augmentation of a batch: one operation, and numbers in [0, 1) for each image that say how far.

    Args:
        op: None leaves the images as they are.
        numbers_B3: float64 [B, 3], or [1, 3] where all images are moved alike (siamese).
    """

    op: DsaOp | None
    numbers_B3: "Tensor"


def draw_dsa(ops: Sequence[DsaOp], seed: int, count: int) -> Dsa:
    """Draw the augmentation of a step: one of `ops`, with numbers for `count` images (1: the same for all)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    place = int(torch.randint(max(1, len(ops)), (), generator=generator))
    return Dsa(ops[place] if ops else None, torch.rand(count, NUMBERS, generator=generator, dtype=torch.float64))


def apply_dsa(images_BCHW: "Tensor", drawn: Dsa) -> "Tensor":
    """Augment normalised images; differentiable in them. What lies outside an image is 0, the mean grey."""
    if drawn.op is None:
        return images_BCHW
    numbers_B3 = drawn.numbers_B3.to(images_BCHW.device, images_BCHW.dtype).expand(len(images_BCHW), NUMBERS)
    return _APPLY[drawn.op](images_BCHW, numbers_B3)


def _between(low: float, high: float, numbers_B: "Tensor") -> "Tensor":
    return (low + (high - low) * numbers_B).view(-1, 1, 1, 1)


def _color(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    images_BCHW = images_BCHW + _between(-BRIGHTNESS, BRIGHTNESS, numbers_B3[:, 0])
    grey_B1HW = images_BCHW.mean(1, keepdim=True)
    images_BCHW = grey_B1HW + (images_BCHW - grey_B1HW) * _between(*SATURATION, numbers_B3[:, 1])
    mean_B111 = images_BCHW.mean((1, 2, 3), keepdim=True)
    return mean_B111 + (images_BCHW - mean_B111) * _between(*CONTRAST, numbers_B3[:, 2])


def _shift(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    """By whole pixels, so that nothing is blurred."""
    import torch
    from torch.nn import functional

    count, _, height, width = images_BCHW.shape
    far_y, far_x = int(height * SHIFT + 0.5), int(width * SHIFT + 0.5)
    padded = functional.pad(images_BCHW, (far_x, far_x, far_y, far_y))
    top_B, left_B = ((numbers_B3[:, axis] * (2 * far + 1)).long() for axis, far in ((0, far_y), (1, far_x)))
    rows_BH = top_B[:, None] + torch.arange(height, device=images_BCHW.device)
    columns_BW = left_B[:, None] + torch.arange(width, device=images_BCHW.device)
    batch_B11 = torch.arange(count, device=images_BCHW.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch_B11, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    """A square of half the side goes; its centre lies anywhere in the image."""
    import torch

    _, _, height, width = images_BCHW.shape
    inside = []
    for axis, side in ((0, height), (1, width)):
        first_B = (numbers_B3[:, axis] * side).long() - int(side * CUTOUT + 0.5) // 2
        places = torch.arange(side, device=images_BCHW.device)
        inside.append((places >= first_B[:, None]) & (places < first_B[:, None] + int(side * CUTOUT + 0.5)))
    hole_B1HW = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return images_BCHW * (~hole_B1HW).to(images_BCHW.dtype)


def _flip(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    import torch

    return torch.where((numbers_B3[:, 0] < FLIP).view(-1, 1, 1, 1), images_BCHW.flip(3), images_BCHW)


def _scale(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    import torch

    factors_B2 = 1 / SCALE + (SCALE - 1 / SCALE) * numbers_B3[:, :2]
    return _affine(images_BCHW, torch.diag_embed(factors_B2))


def _rotate(images_BCHW: "Tensor", numbers_B3: "Tensor") -> "Tensor":
    import torch

    angle_B = torch.deg2rad((2 * numbers_B3[:, 0] - 1) * ROTATE_DEG)
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    return _affine(images_BCHW, torch.stack([torch.stack([cos_B, -sin_B], 1), torch.stack([sin_B, cos_B], 1)], 1))


def _affine(images_BCHW: "Tensor", matrix_B22: "Tensor") -> "Tensor":
    """Each point of the result looks up `matrix` times itself in the image; the centre stays."""
    import torch
    from torch.nn import functional

    theta_B23 = torch.cat([matrix_B22, matrix_B22.new_zeros(len(matrix_B22), 2, 1)], 2)
    grid = functional.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=True)
    return functional.grid_sample(images_BCHW, grid, align_corners=True)


_APPLY = {"color": _color, "shift": _shift, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
