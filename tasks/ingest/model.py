"""ingest.model: a classifier from a file, which is read without executing it, and judged before it judges."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from schemas.quantities import Fraction
from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.operators import Input, Params, SourcePath, Table, Unit, Work, train
from tasks.nets.models import Classifier, measured_on, model_batch, model_row, refuse_below
from tasks.nets.weights import load_into, read_weights
from tasks.nets.zoo import NetName, build

PREDICT_BATCH = 64


class ModelParams(Params):
    """Parameters of `ingest.model`."""

    file: SourcePath = Field(description="The weights: safetensors, or a torch or timm checkpoint, of which nothing is executed.")
    net: NetName = Field(description="Its architecture: a net of ours, or timm/<name>.")
    side_px: int = Field(ge=1, description="Images are resized to this square for it.")
    channels: Literal[1, 3] = Field(default=3, description="1 grey, 3 colour.")
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="What is taken off its input, a channel each, on the scale 0 to 1.")
    std: tuple[float, ...] = Field(default=(0.229, 0.224, 0.225), description="What its input is divided by, likewise.")
    classes: list[str] | SourcePath = Field(description="Its class names in the order of its outputs: a list, or a text file with a name a line.")
    saw: str = Field(default="unknown", description="What it was trained on: unknown, none, or a few words.")
    floor: Fraction | None = Field(default=None, description="Refuse it below this accuracy on `check_on`, as 95% or 0.95.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std: {self.channels} numbers each, one a channel")
        if min(self.std) <= 0:
            raise ValueError("std: numbers above 0 expected")
        return self

    @property
    def label_names(self) -> list[str]:
        """The class names, read from the file where it is one.

        Raises:
            InputError: the file isn't text; there are fewer than two, or one stands there twice.
        """
        if isinstance(self.classes, Path):
            try:
                lines = self.classes.read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(str(self.classes), "is no readable text in UTF-8", "write a class name a line") from error
            where, names = str(self.classes), [line.strip() for line in lines if line.strip()]
        else:
            where, names = "classes", self.classes
        if len(names) < 2:
            raise InputError(where, f"two or more class names expected, not {len(names)}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(where, f"the name '{twice[0]}' stands there twice")
        return names


def _units() -> list[Unit]:
    return [Unit("model")]


@train(version=1, units=_units, random=False, inputs={"check_on": Input(requires=["image", "label"], optional=True, trains=False)})
def model(unit: Unit, inputs: Mapping[str, Table], params: ModelParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Bring a trained classifier in from a file, as a row of a table of models.

    Its class names are matched to those of `check_on` by name, so another order of classes does no
    harm; its accuracy there is measured before it labels anything, and kept in `metrics`.

    Raises:
        InputError: the file holds no weights or could run code; its tensors aren't the net's; the model lacks a class.
        StageError: its accuracy is below `floor`.
    """
    import torch

    names = params.label_names
    with torch.random.fork_rng(devices=[]):  # the initial weights that `build` draws are thrown away
        net = build(params.net, num_classes=len(names), channels=params.channels, side_px=params.side_px)
    load_into(net, read_weights(params.file), params.file)
    config = {
        "task": "classify", "net": params.net, "num_classes": len(names), "channels": params.channels, "side_px": params.side_px,
        "label_names": names, "mean": list(params.mean), "std": list(params.std),
    }  # fmt: skip
    row = model_row(net, config, 0, {}, params.saw)
    metrics = {}
    if "check_on" in inputs:
        member = Classifier.from_row(row, work.device)
        if not label_names(inputs["check_on"].schema):
            raise InputError("check_on", "its labels have no names to match the model's classes by", "name them at ingest: classes: […]")
        metrics = measured_on([member], inputs["check_on"], work.scratch, PREDICT_BATCH)
        work.metrics["validation_accuracy"] = metrics["validation_accuracy"]
        refuse_below(params.floor, metrics, "ingest.model")
    elif params.floor is not None:
        raise InputError("floor", "there is nothing to measure the model on", "write from: {check_on: split.validation}")
    yield model_batch([row | {"metrics": json.dumps(metrics, sort_keys=True)}])
