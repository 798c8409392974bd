"""distill.pca: the easiest images of each class, combined into grids of whole images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import pyarrow as pa
from blake3 import blake3
from pydantic import Field, model_validator

from stillroom.digests import canonical_json
from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode, resize
from stillroom.operators import Input, Params, Table, Unit, Work, source
from stillroom.views import MOSAIC_GRID, cell_bounds
from tasks.hardness import KNOWN_ENDS, hard_end
from tasks.synthetic import synthetic_fields, synthetic_row

if TYPE_CHECKING:
    import polars as pl

# H W C = an image

MOSAICS_OF_A_BATCH = 64


class PcaParams(Params):
    """Parameters of `distill.pca`."""

    images_per_class: int = Field(ge=1, description="Stored images of each class. Each takes grid x grid originals.")
    grid: int = Field(default=2, ge=1, le=16, description="Cells along a side of a stored image; 1 keeps the easiest images whole.")
    score: str = Field(default="el2n", description="Column with the score by which the easiest are taken.")
    hard: Literal["high", "low"] | None = Field(default=None, description=KNOWN_ENDS)
    side_px: int | None = Field(default=None, ge=1, le=8192, description="Side of a stored image. Left out, it has the size of its originals.")

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        hard_end(self.score, self.hard)
        if self.side_px is not None and self.grid > self.side_px:
            raise ValueError(f"grid: {self.grid} cells don't fit along {self.side_px} px")
        return self


def _units(inputs: Mapping[str, Table], params: PcaParams) -> list[Unit]:
    """A unit a class; `value` has the rows of its originals from easy to hard, those of a mosaic side by side.

    Raises:
        InputError: a class has too few originals; the score is no number.
    """
    samples = inputs["samples"]
    ranked = _ranked(samples.frame(["sample_id", "label", params.score]), params)
    if not ranked:
        raise InputError("samples", f"none has a label and a number as its {params.score}")
    needed = params.images_per_class * params.grid**2
    fewest, label = min((len(rows), label) for label, rows in ranked)
    if fewest < needed:
        problem = f"has {fewest} images with a score, and {params.images_per_class} of {params.grid}x{params.grid} take {needed}"
        most = fewest // params.grid**2
        way_out = f"every class can give images_per_class: {most}" if most else "a smaller grid takes fewer"
        raise InputError(f"class '{_name(label_names(samples.schema), label)}'", problem, way_out)
    return [Unit(f"class-{label}", 0, params.images_per_class, value={"label": label, "rows": rows[:needed]}) for label, rows in ranked]


def _adds(params: PcaParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    names = label_names(schemas["samples"]) if "samples" in schemas else None
    return synthetic_fields(names) | {"parents": pa.list_(pa.string()), MOSAIC_GRID: pa.int8()}


@source(version=1, units=_units, adds=_adds, inputs={"samples": Input(requires=lambda params: ["image", "label", params.score])})
def pca(unit: Unit, inputs: Mapping[str, Table], params: PcaParams, work: Work, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Prune each class to its easiest images, and combine these into mosaics of grid x grid whole images.

    The first two steps of PCA (arXiv 2502.06434): the same number of stored images for every class, nothing
    cropped. The third, crops that stay inside a cell, is `reinforce.views`, which goes by `mosaic_grid`.
    Originals are ranked from easy to hard, ties by sample id; the first grid^2 make the first mosaic, and so
    on: images of a smaller budget are among those of a larger one. Rows without a label or score take no part.

    Returns:
        `images_per_class` rows a class, in the order of labels; `parents` are the originals' ids, cell by
        cell in rows from the top left. Images are PNG, so nothing is lost beyond the down-scaling.

    Raises:
        InputError: an image can't be decoded; originals of a mosaic differ in size and `side_px` is left out;
            cells would be smaller than a pixel.
    """
    samples, names = inputs["samples"], label_names(inputs["samples"].schema)
    label, rows, cells = unit.value["label"], unit.value["rows"], params.grid**2
    name = _name(names, label)
    for start in range(unit.start, unit.stop, MOSAICS_OF_A_BATCH):
        stop = min(start + MOSAICS_OF_A_BATCH, unit.stop)
        made = []
        for index in range(start, stop):
            originals = samples.take(rows[index * cells : (index + 1) * cells], ["sample_id", "image"])
            parents = originals["sample_id"].to_pylist()
            mosaic_HWC = combine(_decoded(parents, originals["image"]), params.grid, params.side_px)
            sample_id = blake3(canonical_json([parents, params.grid, *mosaic_HWC.shape[:2]])).hexdigest(length=16)
            row = synthetic_row(sample_id, mosaic_HWC, label, name, f"pca:{name}/{index}")
            made.append(row | {"parents": parents, MOSAIC_GRID: params.grid})
        yield pa.RecordBatch.from_pylist(made, schema)
        work.progress(stop, unit.stop)


def combine(images: Sequence[np.ndarray], grid: int, side_px: int | None = None) -> np.ndarray:
    """Put whole images into the cells of a mosaic, in rows from the top left.

    Args:
        images: grid^2 of them, uint8 [H, W, C], C = 1 or 3; one of colour makes all of colour.
        grid: cells along a side. Where the side doesn't divide, the first cells are a pixel larger.
        side_px: of the mosaic; None gives it the size that its images have.

    Returns:
        uint8 [H, W, C] or [side, side, C].

    Raises:
        InputError: images of several sizes, or cells smaller than a pixel.
    """
    sizes = sorted({image_HWC.shape[:2] for image_HWC in images})
    if side_px is None and len(sizes) > 1:
        some = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise InputError("images", f"of one mosaic have {some} pixels", "give side_px, and every mosaic has that side")
    height, width = sizes[0] if side_px is None else (side_px, side_px)
    if grid > min(height, width):
        raise InputError("images", f"of {width}x{height} pixels can't hold {grid}x{grid} cells", "a smaller grid, or a side_px")
    mosaic_HWC = np.empty((height, width, max(image_HWC.shape[2] for image_HWC in images)), np.uint8)
    for cell, image_HWC in enumerate(images):
        (top, bottom), (left, right) = cell_bounds(height, grid, cell // grid), cell_bounds(width, grid, cell % grid)
        mosaic_HWC[top:bottom, left:right] = resize(image_HWC.transpose(2, 0, 1)[None], bottom - top, right - left)[0].transpose(1, 2, 0)
    return mosaic_HWC


def _ranked(frame: "pl.DataFrame", params: PcaParams) -> list[tuple[int, list[int]]]:
    """Of each class, by its label: its rows from easy to hard, ties by id."""
    import polars as pl

    if not frame[params.score].dtype.is_numeric():
        raise InputError(f"score '{params.score}'", f"holds {frame[params.score].dtype}, not numbers")
    hardness = pl.col(params.score).cast(pl.Float64) * (1 if hard_end(params.score, params.hard) == "high" else -1)
    lines = frame.with_row_index("row").select("row", "sample_id", "label", hardness=hardness)
    sound = lines.filter(pl.col("label").is_not_null() & pl.col("hardness").is_not_null() & pl.col("hardness").is_not_nan())
    classes = sound.sort("hardness", "sample_id").group_by("label", maintain_order=True).agg("row").sort("label")
    return list(zip(classes["label"].to_list(), classes["row"].to_list(), strict=True))


def _decoded(ids: Sequence[str], images: pa.ChunkedArray) -> list[np.ndarray]:
    decoded = []
    for sample_id, image in zip(ids, images.to_pylist(), strict=True):
        try:
            decoded.append(decode(image or b""))
        except ImageFault as fault:
            raise InputError(f"sample '{sample_id}'", str(fault), "let filter.decodable drop such rows first") from fault
    return decoded


def _name(names: Sequence[str] | None, label: int) -> str:
    return names[label] if names else str(label)
