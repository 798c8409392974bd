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
# What a unit hands to `_finish`: a row a student, lists of N.
_ANSWERS = pa.schema(
    [
        pa.field("arm", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("correct", pa.list_(pa.bool_())),
        pa.field("nll", pa.list_(pa.float64())),
        pa.field("confidence", pa.list_(pa.float64())),
    ]
)


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
    labels_N, names = load_labels(inputs["test"])
    arm, students = inputs[unit.value], load_classifiers(inputs[unit.value], work.device)
    look = {name: students[0].config[name] for name in ("side_px", "channels")}
    pixels_NCSS = load_images(inputs["test"], work.scratch, **look)
    for done, (classifier, row) in enumerate(zip(students, arm.frame(["seed", "metrics", "saw"]).to_dicts(), strict=True), 1):
        probs_NK = classifier.with_labels(names).probs(pixels_NCSS, params.batch)
        of_label_N = probs_NK[np.arange(len(labels_N)), labels_N].astype(np.float64)
        saw = json.loads(row["saw"])
        answers = {
            "arm": unit.value,
            "seed": row["seed"],
            "learning_rate": json.loads(row["metrics"]).get("learning_rate"),
            "rows": saw["rows"] if isinstance(saw, dict) else None,
            "correct": probs_NK.argmax(1) == labels_N,
            "nll": -np.log(np.maximum(of_label_N, 1e-12)),
            "confidence": probs_NK.max(1),
        }
        yield pa.RecordBatch.from_pylist([answers], _ANSWERS)
        work.progress(done, len(students))


def _read(table: pa.Table) -> Judged:
    """An arm from the answers of its unit, a row a student."""
    arrays = [np.array(table[name].to_pylist()) for name in ("correct", "nll", "confidence")]
    (arm,) = set(table["arm"].to_pylist())
    return Judged(arm, table["seed"].to_pylist(), table["learning_rate"][0].as_py(), table["rows"][0].as_py(), *arrays)


def _pairs(arms: list[str]) -> list[tuple[str, str]]:
    """Which differences are shown: the candidate over control, raw data and ablations under equal labels, and over itself with hard labels.

    Raw data has hard labels alone, which stand against either kind.
    """
    pairs = []
    for arm in (arm for arm in arms if arm.startswith("candidate.")):
        labels = arm.removeprefix("candidate.")
        against = [f"control.{labels}", "raw.hard", *(other for other in arms if other.startswith("without_") and other.endswith(f".{labels}"))]
        against += ["candidate.hard"] if labels != "hard" else []
        pairs += [(arm, other) for other in against if other in arms]
    return pairs


def _arm_line(arm: Judged) -> Line:
    accuracy, low, high = mean_interval(arm.correct_SN)
    ece = float(np.mean([calibration_error(confidence_N, correct_N) for confidence_N, correct_N in zip(arm.confidence_SN, arm.correct_SN, strict=True)]))
    known = {"rows": arm.rows, "test_rows": arm.correct_SN.shape[1], "seeds": len(arm.seeds), "learning_rate": arm.learning_rate}
    return {"kind": "arm", "arm": arm.arm, **known, "accuracy": accuracy, "low": low, "high": high, "nll": float(arm.nll_SN.mean()), "ece": ece}


def _difference_line(arm: Judged, against: Judged) -> Line:
    if arm.seeds != against.seeds:
        raise InputError(
            f"arms {arm.arm} and {against.arm}", f"have students of other seeds: {arm.seeds} and {against.seeds}", "differences are paired by seed"
        )
    gain, low, high = mean_interval(arm.correct_SN.astype(float) - against.correct_SN, -1, 1)
    known = {"test_rows": arm.correct_SN.shape[1], "seeds": len(arm.seeds)}
    return {"kind": "difference", "arm": arm.arm, "against": against.arm, **known, "gain": gain, "low": low, "high": high}


def _seed_lines(arm: Judged) -> list[Line]:
    return [
        {
            "kind": "seed",
            "arm": arm.arm,
            "seed": seed,
            "accuracy": float(correct_N.mean()),
            "nll": float(nll_N.mean()),
            "ece": calibration_error(confidence_N, correct_N),
        }
        for seed, correct_N, nll_N, confidence_N in zip(arm.seeds, arm.correct_SN, arm.nll_SN, arm.confidence_SN, strict=True)
    ]


def _class_lines(arm: Judged, labels_N: np.ndarray, names: list[str]) -> list[Line]:
    counts = np.bincount(labels_N, minlength=len(names))
    return [
        {"kind": "class", "arm": arm.arm, "label_name": name, "test_rows": int(counts[label]), "accuracy": float(arm.correct_SN[:, labels_N == label].mean())}
        for label, name in enumerate(names)
        if counts[label]
    ]
