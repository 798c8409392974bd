"""evaluate.student: what a dataset is worth, by the students that it trains."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Input, Params, Table, Unit, Work, measure
from tasks.nets.models import load_classifiers
from tasks.nets.samples import load_images, load_labels
from tasks.statistics import calibration_error, mean_interval

# S = seeds (students of an arm), N = test samples, K = classes

Line = dict[str, Any]

_ADDS = {
    "kind": pa.string(),
    "arm": pa.string(),
    "against": pa.string(),
    "seed": pa.int64(),
    "label_name": pa.string(),
    "rows": pa.int64(),
    "test_rows": pa.int64(),
    "seeds": pa.int64(),
    "learning_rate": pa.float64(),
    "accuracy": pa.float64(),
    "nll": pa.float64(),
    "ece": pa.float64(),
    "gain": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
}


class StudentParams(Params):
    """Parameters of `evaluate.student`. What a recipe says under `student`, `control` and `ablations` shapes the arms, and is no parameter of the measure."""

    batch: int = Field(default=256, ge=1, description="Test images that a student sees at once; the last batch is filled up.")
    torch_threads: int = Field(default=1, ge=1, description="Threads of an arm.")


class Judged(NamedTuple):
    """What the students of an arm made of the test split.

    Args:
        confidence_SN: the probability of the class that was answered.
        nll_SN: minus the logarithm of the probability of the right one, in nats.
    """

    arm: str
    seeds: list[int]
    learning_rate: float | None
    rows: int | None
    correct_SN: np.ndarray
    nll_SN: np.ndarray
    confidence_SN: np.ndarray


def _units(inputs: Mapping[str, Table], params: StudentParams) -> list[Unit]:
    return [Unit(arm, value=arm, threads=params.torch_threads) for arm in inputs if arm != "test"]


def _finish(tables: Sequence[pa.Table], inputs: Mapping[str, Table]) -> pa.Table:
    """The metrics of all arms: kinds `arm`, `difference`, `seed` and `class`, in this order."""
    labels_N, names = load_labels(inputs["test"])
    arms = [_read(table) for table in tables]
    by_name = {arm.arm: arm for arm in arms}
    lines = [_arm_line(arm) for arm in arms]
    lines += [_difference_line(by_name[arm], by_name[against]) for arm, against in _pairs(list(by_name))]
    lines += [line for arm in arms for line in _seed_lines(arm)]
    lines += [line for arm in arms for line in _class_lines(arm, labels_N, names)]
    return pa.Table.from_pylist(lines, pa.schema(list(_ADDS.items())))


@measure(version=1, units=_units, adds=_ADDS, inputs={"test": Input(requires=["image", "label"], trains=False), "*": Input(kind="model")}, finish=_finish)
def student(unit: Unit, inputs: Mapping[str, Table], params: StudentParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Judge the students of every arm on the test split, and say how sure the differences are.

    The same student is trained for the same number of steps on the raw data, on the control, on each
    ablation and on the candidate; each arm's learning rate is tuned on validation. Differences are
    paired by seed and by test row; intervals are those of `tasks.statistics.mean_interval`.

    Returns:
        Rows of kind `arm` (means over seeds; `rows` trained on), `difference` (`gain` of `arm` over
        `against`), `seed` and `class`. `accuracy` and `ece` are 0 to 1, `nll` in nats; `low` and `high`
        are the ends of the 95 % interval of `accuracy` or `gain`. What a kind has no number for is null.

    Raises:
        InputError: the test split has no rows, or a class that a student doesn't know.
    """
    arm = unit.value
    labels_N, names = load_labels(inputs["test"])
    rows = inputs[arm].frame(["seed", "metrics", "saw"]).to_dicts()
    for done, (classifier, row) in enumerate(zip(load_classifiers(inputs[arm], work.device), rows, strict=True)):
        size = {"side_px": classifier.config["side_px"], "channels": classifier.config["channels"]}
        if done == 0:
            pixels_NCSS = load_images(inputs["test"], work.scratch, **size)
        probs_NK = classifier.with_labels(names).probs(pixels_NCSS, params.batch)
        metrics, saw = json.loads(row["metrics"]), json.loads(row["saw"])
        yield pa.RecordBatch.from_pylist([
            {
                "arm": arm,
                "seed": row["seed"],
                "learning_rate": metrics.get("learning_rate"),
                "rows": saw["rows"] if isinstance(saw, dict) else None,
                "correct": (probs_NK.argmax(1) == labels_N).tolist(),
                "nll": (-np.log(np.maximum(probs_NK[np.arange(len(labels_N)), labels_N].astype(np.float64), 1e-12))).tolist(),
                "confidence": probs_NK.max(1).astype(np.float64).tolist(),
            }
        ])  # fmt: skip
        work.progress(done + 1, len(rows))
