"""score.predictions: what a model says of each image, and how sure it is."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.special import entr

from stillroom.operators import Input, Params, Table, Unit, Work, score
from tasks.nets.models import Judges, ensemble_probs, judges_of, load_classifiers
from tasks.nets.samples import decode_squares

# B = images, M = members of the ensemble, K = classes

UNIT_ROWS = 4096


class PredictionsParams(Params):
    """Parameters of `score.predictions`."""

    judge: Judges = Field(default="all", description="Which members answer for an image: all, or those alone that didn't see it in training.")
    batch: int = Field(default=256, ge=1, description="Images that the net sees at once; the last batch is filled up.")


def _units(inputs: Mapping[str, Table]) -> list[Unit]:
    rows = inputs["samples"].rows
    return [Unit(f"rows-{start}", start, min(start + UNIT_ROWS, rows)) for start in range(0, rows, UNIT_ROWS)]


@score(
    version=1,
    units=_units,
    adds={"predicted": pa.string(), "confidence": pa.float32(), "margin": pa.float32(), "entropy": pa.float32()},
    inputs={"samples": Input(requires=["image"]), "model": Input(kind="model")},
)
def predictions(unit: Unit, inputs: Mapping[str, Table], params: PredictionsParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Ask a model for each image's class; no label is needed.

    p is the mean of the ensemble's softmaxes; with `judge: unseen`, of those members that weren't trained on the
    image, so that it is out of fold. `predicted`: the name of the most probable class, the
    first of equal ones. `confidence`: its probability, 1/K to 1. `margin`: how far it leads the second,
    0 to 1. `entropy`: -sum p log p, in nats, 0 to log K. Hard rows have a low margin and confidence and
    a high entropy. A row's numbers depend on that row and on `batch` alone.

    Raises:
        InputError: an image that doesn't decode, or one of three channels where the model takes one; with
            `judge: unseen`, one that each member saw, or may have seen.
    """
    members = load_classifiers(inputs["model"], work.device)
    config, names = members[0].config, np.array(members[0].label_names, dtype=object)
    batches = inputs["samples"].scan(["sample_id", "image"], params.batch, unit.start, unit.stop)
    for start, batch in zip(range(unit.start, unit.stop, params.batch), batches, strict=True):
        pixels_BCSS = decode_squares(batch["image"], start, side_px=config["side_px"], channels=config["channels"])
        judges_MB = judges_of(members, batch["sample_id"].to_pylist(), params.judge)
        probs_BK = ensemble_probs(members, pixels_BCSS, params.batch, judges_MB=judges_MB).astype(np.float64)
        ranked_BK = np.sort(probs_BK, axis=1)[:, ::-1]
        second_B = ranked_BK[:, 1] if ranked_BK.shape[1] > 1 else np.zeros(len(ranked_BK))
        said = {"confidence": ranked_BK[:, 0], "margin": ranked_BK[:, 0] - second_B, "entropy": entr(probs_BK).sum(axis=1)}
        columns = {name: pa.array(values_B, pa.float32()) for name, values_B in said.items()}
        yield pa.record_batch({"sample_id": batch["sample_id"], "predicted": pa.array(names[probs_BK.argmax(axis=1)].tolist(), pa.string()), **columns})
