"""What the operators that store views share: which views are drawn, and of images of which size."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import StageError
from stillroom.images import ImageFault, probe
from stillroom.operators import Draw, Params, Table
from stillroom.views import KINDS, MOSAIC_GRID, Kind, ViewPolicy, draw_views

__all__ = ["Size", "Views", "common_size", "draw_of", "refuse_fault", "refuse_other_size"]

# B = rows of a batch

Size = tuple[int, int]  # height and width in pixels


class Views(Params):
    """Which views are drawn, and how many."""

    count: int = Field(default=8, ge=1, le=1024, description="Views a sample. Training for e epochs sees each about e / count times.")
    policy: tuple[Kind, ...] = Field(default=KINDS, description="Of identity (makes view 0 the plain image), crop, flip, affine (shape all further ones).")
    crop_scale: tuple[float, float] = Field(default=(0.6, 1.0), description="Area of a crop as a part of the image's: lowest, highest.")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="Width over height of a crop: lowest, highest.")
    flip: float = Field(default=0.5, ge=0, le=1, description="How often left and right are swapped. Leave `flip` out of the policy for digits and text.")
    shift_px: float = Field(default=0.5, ge=0, le=127, description="Largest shift along each axis, in pixels of the view.")
    rotate_deg: float = Field(default=8.0, ge=0, le=180, description="Largest rotation to either side, in degrees.")
    scale: float = Field(default=0.08, ge=0, le=0.5, description="Largest change of size: 0.08 draws factors from 0.92 to 1.08.")
    scale_axes: Literal["one", "each"] = Field(default="one", description="Whether both axes share a factor (one) or each has its own (each).")
    side_px: int | None = Field(default=None, ge=1, description="Side of every view. Null keeps the image's size, and all images must then be of one size.")

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        if self.count > 1 and set(self.policy) == {"identity"}:
            raise ValueError(f"{self.count} views under the policy [identity] would all be the same; ask for 1, or add a kind")
        self.as_policy()
        return self

    def as_policy(self) -> ViewPolicy:
        """The same as what `stillroom.views` draws from."""
        return ViewPolicy(kinds=self.policy, **self.model_dump(exclude={"count", "policy"}))


def draw_of(operator: str, batch: pa.RecordBatch, sizes: Sequence[Size], views: Views, draw: Draw) -> pa.ListArray:
    """Draw the views of B rows: list<VIEW_TYPE> [B]; those of a mosaic, which its `mosaic_grid` tells, inside its cells.

    Raises:
        StageError: a grid that doesn't fit its image.
    """
    grids_B = batch[MOSAIC_GRID].fill_null(1).to_numpy() if MOSAIC_GRID in batch.schema.names else None
    try:
        return draw_views(views.as_policy(), batch["sample_id"].to_pylist(), np.array(sizes, np.int64), draw, views.count, grids_B)
    except ValueError as error:
        raise StageError(operator, str(error), f"'{MOSAIC_GRID}' should be a column that distill.pca made") from error


def common_size(operator: str, table: Table, views: Views) -> Size | None:
    """Height and width of the first image, where views keep the image's size and so all must agree; else None."""
    if views.side_px is not None or not table.rows:
        return None
    first = table.take([0], ["sample_id", "image"])
    try:
        facts = probe(first["image"][0].as_py() or b"")
    except ImageFault as fault:
        raise refuse_fault(operator, first["sample_id"][0].as_py(), fault) from fault
    return facts.height, facts.width


def refuse_fault(operator: str, sample_id: str, fault: ImageFault) -> StageError:
    """The error of an image that can't be used."""
    return StageError(operator, f"sample '{sample_id}': {str(fault).removeprefix('row 0: ')}", "let filter.decodable drop such rows first")


def refuse_other_size(operator: str, sample_id: str, size: Size, common: Size | None) -> None:
    """Raise where an image has another size than all must have.

    Raises:
        StageError: naming both.
    """
    if common not in (None, size):
        own, first = (f"{width}x{height}" for height, width in (size, common or size))
        raise StageError(operator, f"sample '{sample_id}' has {own} px, the first has {first}", "give views a side_px, and all are resized to it")
