"""score.embed: a vector for each image: its pixels, or what a net sees in it."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from stillroom.errors import InputError
from stillroom.fields import vector_field
from stillroom.operators import Input, Params, SourcePath, Table, Unit, Work, score
from tasks.nets.models import load_classifiers, read_weights
from tasks.nets.samples import decode_squares
from tasks.nets.training import normalise
from tasks.nets.zoo import build, check_net, feature_size

# B = images, C S S = image, D = size of the vector

UNIT_ROWS = 4096


class EmbedParams(Params):
    """Parameters of `score.embed`."""

    net: str = Field(
        default="pixels", description="pixels: the image itself. model: the features of the `model` input. timm/<name>: of that net, with `weights`."
    )
    side_px: int = Field(default=32, ge=1, description="Images are resized to this square first.")
    channels: Literal[1, 3] = Field(default=3, description="1 grey, 3 colour.")
    weights: SourcePath | None = Field(default=None, description="A safetensors or torch file with the weights of a timm net.")
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="Of a timm net's input, a channel each, on the scale 0 to 1.")
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), description="Likewise.")
    features: int | None = Field(default=None, ge=1, description="With net: model, how many features the model has.")
    name: str = Field(default="embedding", pattern=r"[a-z][a-z0-9_]*", description="The column's name.")
    batch: int = Field(default=256, ge=1, description="Images that the net sees at once; the last batch is filled up.")

    @field_validator("net")
    @classmethod
    def _known(cls, net: str) -> str:
        return net if net in ("pixels", "model") else check_net(net)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.net.startswith("timm/") != (self.weights is not None):
            raise ValueError("weights: a timm net needs a file of them, and nothing else takes one")
        if self.net not in ("pixels", "model") and not self.net.startswith("timm/"):
            raise ValueError("net: pixels, model or timm/<name>; a net of ours comes in by the input `model`")
        if (self.net == "model") != (self.features is not None):
            raise ValueError("features: say it with net: model, and only there")
        return self


def _adds(params: EmbedParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    if params.net == "pixels":
        size = params.channels * params.side_px**2
    elif params.net == "model":
        if "model" not in schemas:
            raise InputError("from.model", "net: model needs a model", "write from: {samples: …, model: …}")
        size = params.features or 0
    else:
        size = feature_size(params.net, channels=params.channels, side_px=params.side_px)
    return {params.name: vector_field(params.name, size)}


def _units(inputs: Mapping[str, Table]) -> list[Unit]:
    rows = inputs["samples"].rows
    return [Unit(f"rows-{start}", start, min(start + UNIT_ROWS, rows)) for start in range(0, rows, UNIT_ROWS)]


@score(version=1, units=_units, adds=_adds, inputs={"samples": Input(requires=["image"]), "model": Input(kind="model", optional=True)})
def embed(unit: Unit, inputs: Mapping[str, Table], params: EmbedParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Give each image a vector of float32: its pixels over 255, or a net's features.

    A row's vector depends on that row and on `batch` alone: nets run on batches of one fixed shape.

    Raises:
        InputError: an image that doesn't decode; a model with another number of features than declared.
    """
    ask = _asker(inputs, params, work)
    for batch in inputs["samples"].scan(["sample_id", "image"], params.batch, unit.start, unit.stop):
        pixels_BCSS = decode_squares(batch.column("image"), unit.start, side_px=params.side_px, channels=params.channels)
        vectors_BD = ask(pixels_BCSS)
        flat = pa.array(np.ascontiguousarray(vectors_BD, np.float32).reshape(-1))
        yield pa.record_batch({"sample_id": batch["sample_id"], params.name: pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])})


def _asker(inputs: Mapping[str, Table], params: EmbedParams, work: Work) -> Any:
    """From uint8 [B, C, S, S] to float32 [B, D]."""
    if params.net == "pixels":
        return lambda pixels_BCSS: pixels_BCSS.reshape(len(pixels_BCSS), -1).astype(np.float32) / 255
    if params.net == "model":
        member = load_classifiers(inputs["model"], work.device)[0]

        def features(pixels_BCSS: np.ndarray) -> np.ndarray:
            found_BD = member.features(pixels_BCSS, params.batch)
            if found_BD.shape[1] != params.features:
                raise InputError("features", f"the model has {found_BD.shape[1]}, not {params.features}", f"write features: {found_BD.shape[1]}")
            return found_BD

        return features
    import torch

    net = build(params.net, num_classes=0, channels=params.channels, side_px=params.side_px)
    assert params.weights is not None
    net.load_state_dict(read_weights(params.weights), strict=False)
    net.to(work.device).eval()

    def headless(pixels_BCSS: np.ndarray) -> np.ndarray:
        padded = np.zeros((params.batch, *pixels_BCSS.shape[1:]), np.uint8)
        padded[: len(pixels_BCSS)] = pixels_BCSS
        with torch.inference_mode():
            found: np.ndarray = net(normalise(torch.from_numpy(padded).to(work.device), params.mean, params.std)).float().cpu().numpy()
        return found[: len(pixels_BCSS)]

    return headless
