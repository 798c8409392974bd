"""score.embed: a vector for each image: its pixels, or what a net sees in it."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from stillroom.errors import InputError
from stillroom.fields import vector_field
from stillroom.operators import Input, Params, SourcePath, Table, Unit, Work, score
from tasks.nets import efficientnet_lite as lite
from tasks.nets.models import Classifier, load_classifiers
from tasks.nets.samples import decode_squares
from tasks.nets.weights import load_into, read_weights
from tasks.nets.zoo import build, check_net, feature_size, head_names

# B = images, C S S = image, D = size of the vector

UNIT_ROWS = 4096
WITHOUT_WEIGHTS = ("scattering", "random_convs")
OUR_WORDS = ("pixels", "model", *WITHOUT_WEIGHTS, *lite.EFFICIENTNET_LITE)
# What random filters of 6 pixels and their quarters need, and what an EfficientNet-Lite does.
SMALLEST_PX = dict.fromkeys(WITHOUT_WEIGHTS, 8) | dict.fromkeys(lite.EFFICIENTNET_LITE, lite.SMALLEST_PX)


class EmbedParams(Params):
    """Parameters of `score.embed`."""

    net: str = Field(
        default="pixels",
        description="pixels: the image itself. scattering, random_convs: features without weights. model: the features of the `model` input. "
        "efficientnet_lite0, efficientnet_lite2: those of a net trained on ImageNet, from a package. timm/<name>, "
        "cnn, convnet3, mlp, resnet18: of that net, with `weights`.",
    )
    side_px: int = Field(default=32, ge=1, description="Images are resized to this square first; with net: model, to the model's.")
    channels: Literal[1, 3] = Field(default=3, description="1 grey, 3 colour; with net: model, the model's.")
    weights: SourcePath | None = Field(default=None, description="A safetensors or torch file with the weights of a net that is named.")
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="Of the input of a net with `weights`, a channel each, on the scale 0 to 1.")
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), description="Likewise.")
    features: int | None = Field(default=None, ge=1, description="With net: model, how many features the model has.")
    scales: int = Field(default=2, ge=1, le=8, description="With net: scattering, how often the scale doubles; vectors are sampled every 2^scales pixels.")
    angles: int = Field(default=8, ge=1, le=32, description="With net: scattering, the directions of its wavelets.")
    filters: int = Field(default=256, ge=1, description="With net: random_convs, how many; vectors have 4 numbers for each.")
    name: str = Field(default="embedding", pattern=r"^[a-z][a-z0-9_]*$", description="The column's name.")
    batch: int = Field(default=256, ge=1, description="Images that the net sees at once; the last batch is filled up.")

    @field_validator("net")
    @classmethod
    def _known(cls, net: str) -> str:
        return net if net in OUR_WORDS else check_net(net)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.net in OUR_WORDS) != (self.weights is None):
            way_out = "net: model takes one from the recipe" if self.weights is None else f"net: {self.net} takes none"
            raise ValueError(f"weights: a net by its name needs a file of them; {way_out}")
        if self.weights is not None and (len(self.mean) != self.channels or len(self.std) != self.channels):
            raise ValueError(f"mean and std: {self.channels} numbers each, one a channel")
        if any(deviation <= 0 for deviation in self.std):
            raise ValueError("std: numbers above 0 expected")
        if (self.net == "model") != (self.features is not None):
            raise ValueError("features: say it with net: model, and only there")
        if self.side_px < SMALLEST_PX.get(self.net, 1):
            raise ValueError(f"side_px: net: {self.net} needs {SMALLEST_PX[self.net]} at least")
        if self.net in lite.EFFICIENTNET_LITE and self.channels == 1:
            raise ValueError(f"channels: net: {self.net} takes 3; grey images are repeated")
        if self.net == "scattering" and 2**self.scales > self.side_px:
            raise ValueError(f"scales: 2^{self.scales} pixels are more than side_px: {self.side_px}")
        return self


def _adds(params: EmbedParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    if params.net == "pixels":
        size = params.channels * params.side_px**2
    elif params.net == "scattering":
        from tasks.nets.scattering import scattering_size

        size = scattering_size(params.channels, params.side_px, params.scales, params.angles)
    elif params.net == "random_convs":
        size = 4 * params.filters
    elif params.net in lite.EFFICIENTNET_LITE:
        lite.check_installed(params.net)
        size = lite.FEATURES
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


@score(version=1, units=_units, adds=_adds, inputs={"samples": Input(requires=["image"]), "model": Input(kind="model", optional=True)}, random=True)
def embed(unit: Unit, inputs: Mapping[str, Table], params: EmbedParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Give each image a vector of float32: its pixels over 255, or a net's features.

    Features are what the net's last layer sees; of an ensemble, the first member's. A row's vector
    depends on that row and on `batch` alone: nets run on batches of one fixed shape.

    Raises:
        InputError: an image that doesn't decode; weights that aren't the net's or could run code; a
            model with another number of features than declared.
    """
    member = _member(inputs, params, work)
    size = (params.side_px, params.channels) if member is None else (member.config["side_px"], member.config["channels"])
    batches = inputs["samples"].scan(["sample_id", "image"], params.batch, unit.start, unit.stop)
    for start, batch in zip(range(unit.start, unit.stop, params.batch), batches, strict=True):
        pixels_BCSS = decode_squares(batch["image"], start, side_px=size[0], channels=size[1])
        if member is None:
            vectors_BD = pixels_BCSS.reshape(len(pixels_BCSS), -1).astype(np.float32) / 255
        elif params.net in WITHOUT_WEIGHTS:
            vectors_BD = member.run(member.net, pixels_BCSS, params.batch)
        else:
            vectors_BD = member.features(pixels_BCSS, params.batch)
        if params.features not in (None, vectors_BD.shape[1]):
            raise InputError("features", f"the model has {vectors_BD.shape[1]}, not {params.features}", f"write features: {vectors_BD.shape[1]}")
        flat = pa.array(vectors_BD.reshape(-1))
        yield pa.record_batch({"sample_id": batch["sample_id"], params.name: pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])})


def _member(inputs: Mapping[str, Table], params: EmbedParams, work: Work) -> Classifier | None:
    """The net that looks at the images; None where pixels are asked for."""
    if params.net == "pixels":
        return None
    if params.net == "model":
        return load_classifiers(inputs["model"], work.device)[0]
    if params.net in WITHOUT_WEIGHTS:
        from tasks.nets.random_convs import RandomConvs
        from tasks.nets.scattering import Scattering

        drawn = params.net == "random_convs"
        given = RandomConvs(params.channels, params.filters, work.draw) if drawn else Scattering(params.side_px, params.scales, params.angles)
        as_it_is = {"channels": params.channels, "side_px": params.side_px, "mean": (0.0,) * params.channels, "std": (1.0,) * params.channels}
        return Classifier(given.to(work.device).eval(), as_it_is, params.net, work.device)
    import torch

    if params.net in lite.EFFICIENTNET_LITE:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and thrown away
            net = lite.efficientnet_lite(params.net, params.side_px)
        seen = {"channels": 3, "side_px": params.side_px, "mean": (lite.MEAN,) * 3, "std": (lite.STD,) * 3}
        return Classifier(net.to(work.device).eval(), seen, params.net, work.device)
    assert params.weights is not None
    with torch.random.fork_rng(devices=[]):
        # Of a net of ours the last layer is there, and nobody asks it.
        net = build(params.net, num_classes=0 if params.net.startswith("timm/") else 1, channels=params.channels, side_px=params.side_px)
    load_into(net, read_weights(params.weights), params.weights, without=head_names(params.net))
    seen = {"channels": params.channels, "side_px": params.side_px, "mean": params.mean, "std": params.std}
    return Classifier(net.to(work.device).eval(), seen, params.weights.name, work.device)
