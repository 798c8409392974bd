"""train.zca: how pixels that say the same thing are told apart, learnt from images."""

from collections.abc import Iterator, Mapping
from typing import Literal

import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Input, Params, Table, Unit, Work, train
from tasks.nets.models import ids_seen, model_batch, model_row
from tasks.nets.samples import load_images
from tasks.nets.training import channel_stats
from tasks.nets.whitening import fit_zca

# N = images, C S S = image, D = C · S · S

MAX_NUMBERS = 64 * 64 * 3  # of an image: its covariance then takes 1.2 GB


class ZcaParams(Params):
    """Parameters of `train.zca`."""

    epsilon: float = Field(default=0.1, gt=0, description="Added to each variance, in units of the pixels' own: how much of what is mostly noise is raised.")
    side_px: int | None = Field(default=None, ge=1, description="Resize images to this square; left out, all must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images must agree.")
    torch_threads: int = Field(default=1, ge=1, description="Threads; part of what the last bits depend on.")


def _units(params: ZcaParams) -> list[Unit]:
    return [Unit("zca", threads=params.torch_threads)]


@train(version=1, units=_units, inputs={"samples": Input(requires=["image"])}, random=False)
def zca(unit: Unit, inputs: Mapping[str, Table], params: ZcaParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Fit ZCA whitening on images, for train.experts, distil and table.whiten.

    Pixels are normalised by their channel's mean and deviation; along each eigenvector of their covariance, of the variance s, they are
    then scaled by 1 / sqrt(s + epsilon), and all together so that their variance is 1 on average. ZCA is by Bell and
    Sejnowski (Vision Research, 1997); the distillation literature whitens so (Nguyen et al., arXiv 2107.13034), on
    pixels of 0 to 1, whose variance on CIFAR-10 is about 0.06: an epsilon of 0.1 there is one of 1.6 here.

    Returns:
        One row of MODEL_COLUMNS: `config` has mean, std, side_px, channels and epsilon; `weights` the centre [D], the eigenvectors
        as columns [D, D] and the gain of each [D], float32.

    Raises:
        InputError: images that can't be decoded or differ; more than 12,288 numbers an image.
    """
    import torch

    pixels_NCSS = load_images(inputs["samples"], work.scratch, side_px=params.side_px, channels=params.channels)
    _, channels, side_px, _ = pixels_NCSS.shape
    if channels * side_px**2 > MAX_NUMBERS:
        raise InputError("images", f"have {channels * side_px**2:,} numbers each, whitening takes the square of that", "give a side_px of 64 or less")
    mean, std = channel_stats(pixels_NCSS)
    fitted = torch.nn.Module()
    for name, tensor in zip(("centre_D", "basis_DD", "gain_D"), fit_zca(pixels_NCSS, mean, std, params.epsilon), strict=True):
        fitted.register_buffer(name, tensor.float())
    config = {"task": "whiten", "mean": mean, "std": std, "side_px": side_px, "channels": channels, "epsilon": params.epsilon}
    ids = inputs["samples"].frame(["sample_id"])["sample_id"].to_list()
    yield model_batch([model_row(fitted, config, 0, {}, ids_seen(ids))])
