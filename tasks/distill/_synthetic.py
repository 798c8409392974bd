"""Synthetic images under way: what they start from, and the rows that they end as. Importing this loads no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from blake3 import blake3
from pydantic import Field

from stillroom.digests import canonical_json
from stillroom.errors import InputError
from stillroom.fields import label_names, vector_field
from stillroom.operators import Params, Table
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import normalise
from tasks.nets.whitening import Whitening
from tasks.synthetic import synthetic_fields, synthetic_row

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CheckParams", "SizeParams", "Start", "distilled_fields", "distilled_rows", "load_start"]

# N = synthetic images, C S S = image, K = classes

WRITE_ROWS = 64


class SizeParams(Params):
    """The size of what is distilled, which the schema of a table of distilled images tells."""

    side_px: int = Field(ge=8, le=512, description="Side of the images, as the nets see them.")
    channels: Literal[1, 3] = Field(description="1 grey, 3 colour.")


class CheckParams(SizeParams):
    """How the best of the images under way are found, where a validation split is given as `tune`."""

    check_every: int = Field(default=100, ge=1, description="Iterations between two looks at `tune`; the best images seen there are what comes out.")
    check_nets: int = Field(default=2, ge=1, description="Nets trained for a look.")
    check_epochs: int = Field(default=300, ge=1, description="Epochs that they are trained.")


@dataclass(frozen=True)
class Start:
    """Real images that synthetic ones start from: float32 [N, C, S, S], normalised; int64 [N]; class names; ids."""

    images_NCSS: "Tensor"
    labels_N: np.ndarray
    label_names: list[str]
    sample_ids: list[str]


def load_start(table: Table, scratch: Path, size: SizeParams, mean: Sequence[float], std: Sequence[float], whitening: Whitening | None = None) -> Start:
    """Read the images to start from, made to the size and normalised, and whitened where that is given.

    Raises:
        InputError: there are none, one can't be decoded or has no label, or a class has none.
    """
    import torch

    labels_N, names = load_labels(table)
    pixels_NCSS = load_images(table, scratch, side_px=size.side_px, channels=size.channels, name="start", whitening=whitening)
    counts_K = np.bincount(labels_N, minlength=len(names))
    if not counts_K.all():
        raise InputError("samples", f"class {names[int(counts_K.argmin())]} has no image to start from", "give the stage before images_per_class")
    ids = table.frame(["sample_id"])["sample_id"].to_list()
    return Start(normalise(torch.from_numpy(np.asarray(pixels_NCSS)), mean, std), labels_N, names, ids)


def distilled_fields(size: SizeParams, schema: pa.Schema | None, *, soft: bool) -> dict[str, pa.DataType | pa.Field]:
    """The columns of a table of distilled images, given the schema of those that they start from."""
    names = label_names(schema) if schema else None
    fields = synthetic_fields(names) | {
        "parents": pa.list_(pa.string()),
        "pixels": vector_field("pixels", size.channels * size.side_px**2),
        "training": pa.string(),
    }
    return fields | ({"soft_label": pa.list_(pa.float32(), len(names or []))} if soft else {})


def distilled_rows(
    start: Start,
    images_NCSS: np.ndarray,
    training: Mapping[str, Any],
    schema: pa.Schema,
    metrics: dict[str, Any],
    soft_NK: np.ndarray | None = None,
    whitening: Whitening | None = None,
) -> Iterator[pa.RecordBatch]:
    """Give the finished images as rows, and put what 8 bits lose of them into `metrics`.

    Args:
        images_NCSS: float32, normalised, and whitened where that is given.
        training: what a trainer must do alike: mean, std, learning_rate, augment, labels, net; `zca` is added for whitened ones.
        soft_NK: probabilities, where labels are soft.
    """
    training = training if whitening is None else {**training, "zca": whitening.model_id}
    told = canonical_json(training).decode()
    mean_C11, std_C11 = (np.array(training[name], np.float64)[:, None, None] for name in ("mean", "std"))
    shown_NCSS = images_NCSS if whitening is None else whitening.undo(images_NCSS)
    levels_NCSS = (shown_NCSS * std_C11 + mean_C11) * 255
    pixels_NCSS = np.clip(np.rint(levels_NCSS), 0, 255).astype(np.uint8)
    off_NCSS = pixels_NCSS - levels_NCSS
    metrics |= {
        "uint8_rms_levels": round(float(np.sqrt(np.square(off_NCSS).mean())), 3),
        "uint8_clipped": round(float((np.abs(off_NCSS) > 0.5 + 1e-6).mean()), 4),
    }
    rows, places = [], dict.fromkeys(range(len(start.label_names)), 0)
    for place, label in enumerate(start.labels_N.tolist()):
        parent, name, index = start.sample_ids[place], start.label_names[label], places[label]
        places[label] += 1
        sample_id = blake3(parent.encode() + told.encode() + images_NCSS[place].tobytes()).hexdigest(length=16)
        row = synthetic_row(sample_id, pixels_NCSS[place].transpose(1, 2, 0), label, name, f"distilled:{name}/{index}")
        row |= {"parents": [parent], "pixels": images_NCSS[place].ravel(), "training": told}
        rows.append(row if soft_NK is None else row | {"soft_label": soft_NK[place]})
    for first in range(0, len(rows), WRITE_ROWS):
        yield pa.RecordBatch.from_pylist(rows[first : first + WRITE_ROWS], schema)
