"""What the operators that store views share: which views are drawn, and of images of which size."""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import StageError
from stillroom.images import ImageFault, probe
from stillroom.operators import Draw, Params, Table
from stillroom.partners import Fetch
from stillroom.views import DEFAULT_KINDS, KINDS, MOSAIC_GRID, Kind, Peers, ViewPolicy, draw_view, draw_views

__all__ = ["Size", "Views", "common_size", "draw_of", "drawn_partners", "peers_of", "refuse_fault", "refuse_other_size"]

# B = rows of a batch

Size = tuple[int, int]  # height and width in pixels


class Views(Params):
    """Which views are drawn, and how many."""

    count: int = Field(default=8, ge=1, le=1024, description="Views a sample. Training for e epochs sees each about e / count times.")
    policy: tuple[Kind, ...] = Field(
        default=DEFAULT_KINDS, description=f"Of {', '.join(KINDS)}: identity makes view 0 the plain image, the others shape all further ones."
    )
    crop_scale: tuple[float, float] = Field(default=(0.6, 1.0), description="Area of a crop as a part of the image's: lowest, highest.")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="Width over height of a crop: lowest, highest.")
    flip: float = Field(default=0.5, ge=0, le=1, description="How often left and right are swapped. Leave `flip` out of the policy for digits and text.")
    shift_px: float = Field(default=0.5, ge=0, le=127, description="Largest shift along each axis, in pixels of the view.")
    rotate_deg: float = Field(default=8.0, ge=0, le=180, description="Largest rotation to either side, in degrees.")
    scale: float = Field(default=0.08, ge=0, le=0.5, description="Largest change of size: 0.08 draws factors from 0.92 to 1.08.")
    scale_axes: Literal["one", "each"] = Field(default="one", description="Whether both axes share a factor (one) or each has its own (each).")
    randaugment_ops: int = Field(default=2, ge=1, le=8, description="RandAugment's N: ops after one another.")
    randaugment_magnitude: int = Field(default=9, ge=0, le=30, description="RandAugment's M, on torchvision's scale of 0 to 30.")
    jitter: float = Field(default=0.4, ge=0, le=1, description="Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.")
    hue_deg: float = Field(default=18.0, ge=0, le=180, description="Largest turn of colours about the grey axis, in degrees (jitter).")
    field_px: float = Field(default=1.0, ge=0, le=127, description="Largest shift of a random field, in pixels of the view.")
    field_brightness: float = Field(default=0.1, ge=0, le=1, description="Largest change of brightness of a random field, as a part.")
    erase: float = Field(default=0.25, ge=0, le=1, description="How often a box is erased.")
    erase_scale: tuple[float, float] = Field(default=(0.02, 0.33), description="Area of an erased box as a part of the view's: lowest, highest.")
    erase_ratio: tuple[float, float] = Field(default=(0.3, 3.3), description="Height over width of an erased box: lowest, highest.")
    erase_level: int = Field(default=128, ge=0, le=255, description="What an erased box is filled with.")
    mix: float = Field(default=0.5, ge=0, le=1, description="How often a view is mixed, by one of mixup, cutmix, resizemix, selfmix in the policy.")
    mix_alpha: float = Field(default=1.0, ge=0.01, le=100, description="Of the beta distribution of mixup's and CutMix's shares.")
    strength: tuple[float, float] = Field(
        default=(1.0, 1.0), description="How strong the first view is and the last, as parts of the above: trainers then show weaker views first."
    )
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


def peers_of(table: Table, views: Views) -> Peers | None:
    """Among whom partners are, if views mix: the table's samples, each with those of its own split."""
    if not views.as_policy().mixing:
        return None
    frame = table.frame([name for name in ("sample_id", "split") if name in table.schema.names])
    return Peers(frame["sample_id"].to_list(), frame["split"].to_list() if "split" in frame.columns else None)


def draw_of(operator: str, batch: pa.RecordBatch, sizes: Sequence[Size], views: Views, draw: Draw, peers: Peers | None = None) -> pa.ListArray:
    """Draw the views of B rows: a list of structs each [B]; those of a mosaic, which its `mosaic_grid` tells, inside its cells.

    Raises:
        StageError: a grid that doesn't fit its image.
    """
    try:
        return draw_views(views.as_policy(), batch["sample_id"].to_pylist(), np.array(sizes, np.int64), draw, views.count, _grids(batch), peers)
    except ValueError as error:
        raise StageError(operator, str(error), f"'{MOSAIC_GRID}' should be a column that distill.pca made") from error


def drawn_partners(table: Table, peers: Peers, views: Views, draw: Draw, decoded: Callable[[pa.RecordBatch], list[np.ndarray]]) -> Fetch:
    """For `mixed_in`: images of samples of `table`, and of each the view of that number, which is drawn again here.

    Args:
        decoded: for rows with `sample_id` and `image` their pixels, uint8 [C, H, W] each.
    """

    def fetch(sample_ids: Sequence[str], numbers_M: np.ndarray) -> tuple[list[np.ndarray], pa.StructArray]:
        names = [name for name in ("sample_id", "image", MOSAIC_GRID) if name in table.schema.names]
        batch = table.take([peers.row(sample_id) for sample_id in sample_ids], names).combine_chunks().to_batches()[0]
        images = decoded(batch)
        sizes = np.array([pixels_CHW.shape[1:] for pixels_CHW in images])
        return images, draw_view(views.as_policy(), sample_ids, sizes, draw, numbers_M, views.count, _grids(batch))

    return fetch


def _grids(batch: pa.RecordBatch | pa.Table) -> np.ndarray | None:
    return batch[MOSAIC_GRID].fill_null(1).to_numpy() if MOSAIC_GRID in batch.schema.names else None


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
