"""table.whiten: images as the nets see them that were trained on whitened ones."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.digests import canonical_json
from stillroom.errors import InputError
from stillroom.fields import vector_field
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Input, Params, Rows, Table, row
from tasks.nets.whitening import Whitening, load_whitening

# B = rows of a batch, C S S = image


class WhitenParams(Params):
    """Parameters of `table.whiten`."""

    side_px: int = Field(ge=1, description="The side that train.zca made of images.")
    channels: Literal[1, 3] = Field(description="1 grey, 3 colour, as train.zca had them.")


class State(NamedTuple):
    """The whitening, and what every row says of it."""

    whitening: Whitening
    told: str


def _adds(params: WhitenParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    return {"pixels": vector_field("pixels", params.channels * params.side_px**2), "training": pa.string()}


def _setup(inputs: Mapping[str, Table], params: WhitenParams) -> State:
    whitening = load_whitening(inputs["whitening"])
    assert whitening is not None
    if (whitening.side_px, whitening.channels) != (params.side_px, params.channels):
        own = f"side_px {whitening.side_px} and channels {whitening.channels}"
        raise InputError("whitening", f"was fitted with {own}, not {params.side_px} and {params.channels}", "write the same here")
    return State(whitening, canonical_json({"mean": whitening.mean, "std": whitening.std, "zca": whitening.model_id}).decode())


@row(version=1, adds=_adds, setup=_setup, inputs={"samples": Input(requires=["image"]), "whitening": Input(kind="model")})
def whiten(batch: pa.RecordBatch, params: WhitenParams, state: State) -> Rows:
    """Add images as nets see them that were trained on whitened ones: what a trainer judges such nets by.

    `pixels`: float32 [C · S · S], normalised and whitened by a model of train.zca. `training` (JSON) says how: mean, std and
    `zca`, the model's id, as the rows of a distilled set do. An image that can't be decoded is rejected.

    Raises:
        InputError: another size than the whitening's, or not the one model of train.zca.
    """
    rejected: list[str | None] = []
    pixels_BCSS = np.zeros((len(batch), params.channels, params.side_px, params.side_px), np.uint8)
    for place in range(len(batch)):
        try:
            (pixels_BCSS[place],) = decode_batch(batch["image"].slice(place, 1), side_px=params.side_px, channels=params.channels)
            rejected.append(None)
        except ImageFault as fault:
            rejected.append(str(fault).removeprefix("row 0: "))
    field = vector_field("pixels", params.channels * params.side_px**2)
    values = pa.FixedSizeListArray.from_arrays(pa.array(state.whitening.apply(pixels_BCSS).ravel()), type=field.type)
    told = pa.array([state.told] * len(batch), pa.string())
    return Rows(batch.append_column(field, values).append_column("training", told), rejected=pa.array(rejected, pa.string()))
