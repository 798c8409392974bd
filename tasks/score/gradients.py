"""score.gradients: a proxy of each sample's gradient, which choices by gradients compare."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import InputError
from stillroom.fields import label_names, vector_field
from stillroom.operators import Input, Params, Table, Unit, Work, score
from tasks.nets.models import Classifier, load_classifiers
from tasks.nets.samples import decode_squares

# B = samples, K = classes, D = features

UNIT_ROWS = 4096


class GradientsParams(Params):
    """Parameters of `score.gradients`."""

    of: Literal["logits", "layer"] = Field(
        default="logits", description="logits: p - y, K numbers. layer: (p - y) times each feature that the last layer sees, K · D numbers."
    )
    features: int | None = Field(default=None, ge=1, description="With of: layer, how many features the model has.")
    name: str = Field(default="gradient", pattern=r"^[a-z][a-z0-9_]*$", description="The column's name.")
    batch: int = Field(default=256, ge=1, description="Images that the net sees at once; the last batch is filled up.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.of == "layer") != (self.features is not None):
            raise ValueError("features: say it with of: layer, and only there")
        return self


def _adds(params: GradientsParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    names = label_names(schemas["samples"])
    if names is None:
        raise InputError("label", "its classes have no names, so their number isn't known")
    return {params.name: vector_field(params.name, len(names) * (params.features or 1))}


def _units(inputs: Mapping[str, Table]) -> list[Unit]:
    rows = inputs["samples"].rows
    return [Unit(f"rows-{start}", start, min(start + UNIT_ROWS, rows)) for start in range(0, rows, UNIT_ROWS)]


@score(version=1, units=_units, adds=_adds, inputs={"samples": Input(requires=["image", "label"]), "model": Input(kind="model")})
def gradients(unit: Unit, inputs: Mapping[str, Table], params: GradientsParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Give each sample the gradient of its cross-entropy, by the logits or by the last layer's weights.

    With probabilities p, one-hot label y and the last layer's input h, these are p - y and the outer
    product (p - y) h^T, flattened class by class; float32. Of an ensemble, the first member's. A row
    without a label has NaN throughout, which choices reject. A row's vector depends on that row and
    on `batch` alone.

    Raises:
        InputError: a class that the model doesn't know, an image that doesn't decode, or a model with
            another number of features than declared.
    """
    samples = inputs["samples"]
    classifier = load_classifiers(inputs["model"], work.device)[0].with_labels(label_names(samples.schema) or [])
    batches = samples.scan(["sample_id", "image", "label"], params.batch, unit.start, unit.stop)
    for start, batch in zip(range(unit.start, unit.stop, params.batch), batches, strict=True):
        pixels_BCSS = decode_squares(batch["image"], start, side_px=classifier.config["side_px"], channels=classifier.config["channels"])
        labels_B = batch["label"].to_numpy(zero_copy_only=False).astype(np.float64)
        gradients_BD = _gradients(classifier, pixels_BCSS, labels_B, params)
        flat = pa.array(gradients_BD.astype(np.float32).reshape(-1))
        yield pa.record_batch({"sample_id": batch["sample_id"], params.name: pa.FixedSizeListArray.from_arrays(flat, gradients_BD.shape[1])})


def _gradients(classifier: Classifier, pixels_BCSS: np.ndarray, labels_B: np.ndarray, params: GradientsParams) -> np.ndarray:
    """One vector a row; NaN where the label is."""
    errors_BK = classifier.probs(pixels_BCSS, params.batch)
    known = np.flatnonzero(~np.isnan(labels_B))
    errors_BK[known, labels_B[known].astype(np.int64)] -= 1
    errors_BK[np.isnan(labels_B)] = np.nan
    if params.of == "logits":
        return errors_BK
    features_BD = classifier.features(pixels_BCSS, params.batch)
    if features_BD.shape[1] != params.features:
        raise InputError("features", f"the model has {features_BD.shape[1]}, not {params.features}", f"write features: {features_BD.shape[1]}")
    return (errors_BK[:, :, None] * features_BD[:, None, :]).reshape(len(errors_BK), -1)
