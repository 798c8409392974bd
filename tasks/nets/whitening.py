"""ZCA whitening: pixels that say the same thing are told apart, and a way back. Importing this loads no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import InputError
from stillroom.operators import Table
from stillroom.scratch import memory_map
from tasks.nets.training import normalise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Whitening", "fit_zca", "load_whitening"]

# N = images, B = those of a batch, C S S = image, D = C · S · S

BATCH = 256  # of one shape, the last filled up: what an image becomes depends on no other


@dataclass(frozen=True)
class Whitening:
    """A fitted whitening: z = U diag(gain) U^T (x - centre), x being normalised pixels.

    Args:
        model_id: by which what was whitened by it is known.
        mean, std: of the channels, by which pixels are normalised before.
        centre_D, basis_DD, gain_D: float64.
    """

    model_id: str
    mean: list[float]
    std: list[float]
    side_px: int
    channels: int
    centre_D: "Tensor"
    basis_DD: "Tensor"
    gain_D: "Tensor"

    @cached_property
    def matrix_DD(self) -> "Tensor":
        """What the centred pixels of an image are multiplied by."""
        return (self.basis_DD * self.gain_D) @ self.basis_DD.T

    def apply(self, pixels_NCSS: np.ndarray) -> np.ndarray:
        """Whiten images of uint8; float32 [N, C, S, S].

        Raises:
            InputError: images of another size than it was fitted on.
        """
        import torch

        if pixels_NCSS.shape[1:] != (self.channels, self.side_px, self.side_px):
            own, given = f"{self.channels}x{self.side_px}x{self.side_px}", "x".join(map(str, pixels_NCSS.shape[1:]))
            raise InputError("whitening", f"was fitted on images of {own}, these are {given}", "give side_px and channels as train.zca had them")
        out_NCSS = np.empty(pixels_NCSS.shape, np.float32)
        padded_BCSS = np.zeros((BATCH, *pixels_NCSS.shape[1:]), np.uint8)
        for start in range(0, len(pixels_NCSS), BATCH):
            part_BCSS = pixels_NCSS[start : start + BATCH]
            padded_BCSS[: len(part_BCSS)] = part_BCSS
            values_BD = normalise(torch.from_numpy(padded_BCSS), self.mean, self.std).flatten(1).double().sub_(self.centre_D)
            out_NCSS[start : start + BATCH] = (values_BD @ self.matrix_DD)[: len(part_BCSS)].view(part_BCSS.shape).float().numpy()
        return out_NCSS

    def apply_to_file(self, pixels_NCSS: np.ndarray, file: Path) -> np.ndarray:
        """The same into a file, memory-mapped, so that memory stays bounded by a batch."""
        out_NCSS = memory_map(file, pixels_NCSS.shape, np.float32)
        for start in range(0, len(pixels_NCSS), BATCH):
            out_NCSS[start : start + BATCH] = self.apply(pixels_NCSS[start : start + BATCH])
        return out_NCSS

    def undo(self, images_NCSS: np.ndarray) -> np.ndarray:
        """Normalised images that were whitened, as they were before: float32 [N, C, S, S]."""
        import torch

        inverse_DD = (self.basis_DD / self.gain_D) @ self.basis_DD.T
        values_ND = (torch.from_numpy(images_NCSS).flatten(1).double() @ inverse_DD).add_(self.centre_D)
        return values_ND.view(images_NCSS.shape).float().numpy()


def fit_zca(pixels_NCSS: np.ndarray, mean: Sequence[float], std: Sequence[float], epsilon: float) -> "tuple[Tensor, Tensor, Tensor]":
    """Fit on images of uint8: centre [D], basis [D, D] and gain [D], float64.

    With the eigenvalues s of the covariance of normalised pixels, the gain along an eigenvector is
    1 / sqrt(s + epsilon), times the constant that gives whitened pixels a variance of 1 on average.
    """
    import torch

    width = int(np.prod(pixels_NCSS.shape[1:]))
    total_D, products_DD = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(pixels_NCSS), BATCH):
        values_BD = normalise(torch.from_numpy(np.ascontiguousarray(pixels_NCSS[start : start + BATCH])), mean, std).flatten(1).double()
        total_D += values_BD.sum(0)
        products_DD.addmm_(values_BD.T, values_BD)
    centre_D = total_D / len(pixels_NCSS)
    variance_D, basis_DD = torch.linalg.eigh(products_DD / len(pixels_NCSS) - torch.outer(centre_D, centre_D))
    variance_D.clamp_(min=0)  # of pixels that never change, rounding may have made it negative
    gain_D = (variance_D + epsilon).rsqrt()
    left = (variance_D * gain_D.square()).mean()
    return centre_D, basis_DD, gain_D / left.sqrt() if left > 0 else gain_D


def load_whitening(table: Table | None) -> Whitening | None:
    """The one model of a table of train.zca; None where there is no table.

    Raises:
        InputError: it holds another number of models, or another kind.
    """
    from safetensors.torch import load

    if table is None:
        return None
    if table.rows != 1:
        raise InputError("whitening", f"has {table.rows} models, one is needed", "train.zca gives it")
    (row,) = table.take([0], ["model_id", "config", "weights"]).to_pylist()
    config: Mapping[str, Any] = json.loads(row["config"])
    if config.get("task") != "whiten":
        raise InputError("whitening", f"is a model for the task '{config.get('task')}'", "train.zca gives the one that is needed")
    told: dict[str, Any] = {name: config[name] for name in ("mean", "std", "side_px", "channels")}
    return Whitening(row["model_id"], **told | {name: tensor.double() for name, tensor in load(row["weights"]).items()})
