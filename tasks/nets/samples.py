"""Samples as the arrays that training and scoring read."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Table
from stillroom.scratch import memory_map
from tasks.nets.training import channel_stats

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.nets.whitening import Whitening

__all__ = ["Labelled", "decode_squares", "load_images", "load_labelled", "load_labels"]

# N = all samples, B = those of a batch, C = channels, S = side

READ_ROWS = 256


@dataclass(frozen=True)
class Labelled:
    """Labelled images to train on: uint8 [N, C, S, S], int64 [N], class names, ids, and the channels' means and deviations.

    Whitened ones are float32, normalised, and `zca` is the id of the whitening.
    """

    pixels_NCSS: np.ndarray
    labels_N: np.ndarray
    label_names: list[str]
    sample_ids: list[str]
    mean: list[float]
    std: list[float]
    zca: str | None = None

    @property
    def shape(self) -> dict[str, int]:
        """What `zoo.build` wants to know."""
        return {"num_classes": len(self.label_names), "channels": self.pixels_NCSS.shape[1], "side_px": self.pixels_NCSS.shape[2]}

    def at(self, rows_B: np.ndarray) -> "tuple[Tensor, Tensor]":
        """Images and labels of these rows, as `training.fit` takes them."""
        import torch

        return torch.from_numpy(np.asarray(self.pixels_NCSS[rows_B])), torch.from_numpy(self.labels_N[rows_B])

    def config(self, net: str) -> dict[str, Any]:
        """The `config` of a classifier trained on these."""
        known = {"task": "classify", "net": net, **self.shape, "label_names": self.label_names, "mean": self.mean, "std": self.std}
        return known | ({"zca": self.zca} if self.zca else {})


def load_labelled(table: Table, scratch: Path, *, side_px: int | None = None, channels: int | None = None, whitening: "Whitening | None" = None) -> Labelled:
    """Read samples with `image` and `label` to train on; arguments and errors as in `load_images` and `load_labels`."""
    labels_N, names = load_labels(table)
    pixels_NCSS = load_images(table, scratch, side_px=side_px, channels=channels, whitening=whitening)
    ids = table.frame(["sample_id"])["sample_id"].to_list()
    if whitening is not None:
        return Labelled(pixels_NCSS, labels_N, names, ids, whitening.mean, whitening.std, whitening.model_id)
    return Labelled(pixels_NCSS, labels_N, names, ids, *channel_stats(pixels_NCSS))


def load_images(
    table: Table, scratch: Path, *, side_px: int | None = None, channels: int | None = None, name: str = "images", whitening: "Whitening | None" = None
) -> np.ndarray:
    """Decode the images of all rows into a file `name` under `scratch`, so that memory stays bounded by a batch.

    Args:
        side_px, channels: what all are made to, as in `stillroom.images.decode_batch`; None takes the images' own, which must agree.
        whitening: what they are whitened by.

    Returns:
        uint8 [N, C, S, S], or float32 where they are whitened; memory-mapped.

    Raises:
        InputError: there are no rows; images differ or aren't square; one can't be decoded.
    """
    pixels_NCSS: np.ndarray | None = None
    start = 0
    for batch in table.scan(["image"], batch_size=READ_ROWS):
        part_BCSS = decode_squares(batch.column("image"), start, side_px=side_px, channels=channels)
        if pixels_NCSS is None:
            pixels_NCSS = memory_map(scratch / name, (table.rows, *part_BCSS.shape[1:]), np.uint8)
        if part_BCSS.shape[1:] != pixels_NCSS.shape[1:]:
            raise _differ(pixels_NCSS, part_BCSS, start)
        pixels_NCSS[start : start + len(part_BCSS)] = part_BCSS
        start += len(part_BCSS)
    if pixels_NCSS is None:
        raise InputError("samples", "there are none")
    return pixels_NCSS if whitening is None else whitening.apply_to_file(pixels_NCSS, scratch / f"whitened-{name}")


def decode_squares(images: pa.Array, start: int, *, side_px: int | None = None, channels: int | None = None) -> np.ndarray:
    """Decode images that must be squares, or are made so by `side_px`; uint8 [B, C, S, S].

    Args:
        start: the row of the first, for the text of an error.
    """
    try:
        pixels_BCHW = decode_batch(images, side_px=side_px, channels=channels)
    except ImageFault as fault:
        raise InputError("images", f"from row {start}: {fault}", "filter.decodable removes such rows") from fault
    height, width = pixels_BCHW.shape[2:]
    if height != width:
        raise InputError("images", f"row {start} has {width}x{height} pixels, a square is needed", "give side_px, and all are resized to it")
    return pixels_BCHW


def load_labels(table: Table) -> tuple[np.ndarray, list[str]]:
    """The labels of all rows, int64 [N], and the class names in index order (numbers, where the column has no names).

    Raises:
        InputError: a row has no label, or one outside the classes.
    """
    column = table.frame(["label"])["label"]
    if missing := column.null_count():
        raise InputError("label", f"{missing} of {table.rows} rows have none", "drop them before this stage")
    labels_N = column.to_numpy().astype(np.int64)
    names = label_names(table.schema) or [str(label) for label in range(int(labels_N.max(initial=-1)) + 1)]
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < len(names):
        odd = labels_N[(labels_N < 0) | (labels_N >= len(names))][0]
        raise InputError("label", f"{odd} is none of the {len(names)} classes")
    return labels_N, names


def _differ(first: np.ndarray, odd: np.ndarray, row: int) -> InputError:
    described = [f"{shape[3]} px and {shape[1]} channel{'s' if shape[1] > 1 else ''}" for shape in (first.shape, odd.shape)]
    return InputError("images", f"row 0 has {described[0]}, row {row} has {described[1]}", "give side_px and channels, and all are made alike")
