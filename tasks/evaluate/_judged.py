"""From the answers of nets to lines: accuracies, gains and DD-Ranking's figures, each with its interval."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.evaluate._ranking import augmentation_robust_score, hard_label_recovery, improvement_over_random, label_robust_score
from tasks.statistics import Estimate, mean_interval

__all__ = ["ADDS", "ANSWERS", "lines_of"]

# S = seeds (nets of an arm), N = test samples

Line = dict[str, Any]

ADDS = {
    "kind": pa.string(),
    "set": pa.string(),
    "arm": pa.string(),
    "against": pa.string(),
    "metric": pa.string(),
    "protocol": pa.string(),
    "net": pa.string(),
    "labels": pa.string(),
    "augmented": pa.bool_(),
    "main": pa.bool_(),
    "seed": pa.int64(),
    "rows": pa.int64(),
    "test_rows": pa.int64(),
    "seeds": pa.int64(),
    "learning_rate": pa.float64(),
    "accuracy": pa.float64(),
    "gain": pa.float64(),
    "value": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
}
# What a unit hands over: a row a net.
ANSWERS = pa.schema(
    [
        pa.field("sets", pa.list_(pa.string())),
        pa.field("arm", pa.string()),
        pa.field("net", pa.string()),
        pa.field("labels", pa.string()),
        pa.field("augmented", pa.bool_()),
        pa.field("main", pa.bool_()),
        pa.field("seed", pa.int64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("correct", pa.list_(pa.bool_())),
    ]
)


class Judged(NamedTuple):
    """The nets of an arm under one kind of label and one augmentation; `correct_SN` says which test samples each got right."""

    arm: str
    net: str
    labels: str
    augmented: bool
    main: bool
    learning_rate: float
    rows: int
    correct_SN: np.ndarray


def lines_of(tables: Sequence[pa.Table], protocol: str, first_net: str, label_weight: float, augment_weight: float) -> pa.Table:
    """All lines, set by set: kinds `arm`, `difference`, `ranking`, and at the end `seed`."""
    found: dict[str, list[Judged]] = {}
    for table in tables:
        for sets, judged in _read(table):
            for name in sets:
                found.setdefault(name, []).append(judged)
    lines, seeds = [], []
    for name, arms in found.items():
        lines += [{"set": name} | _arm_line(arm) for arm in arms]
        lines += [{"set": name} | line for line in _difference_lines(arms)]
        for net in dict.fromkeys(arm.net for arm in arms):
            lines += [{"set": name, "net": net} | line for line in _ranking_lines(_Of(arms, net), label_weight, augment_weight)]
        seeds += [{"set": name} | line for arm in arms for line in _seed_lines(arm)]
    return pa.Table.from_pylist([line | {"protocol": protocol} for line in lines + seeds], pa.schema(list(ADDS.items())))


class _Of:
    """The arms of a set on one net, by what they are."""

    def __init__(self, arms: Sequence[Judged], net: str) -> None:
        self._found = {(arm.arm, arm.labels, arm.augmented): arm.correct_SN for arm in arms if arm.net == net}
        own = next(arm for arm in arms if arm.net == net and arm.arm == "candidate" and arm.main)  # its own labels come first
        self.labels, self.augmented = own.labels, own.augmented

    def own(self, arm: str, augmented: bool) -> np.ndarray | None:
        """Under the candidate's own labels, or hard ones where real samples have no teacher."""
        found = self._found.get((arm, self.labels, augmented))
        return self.hard(arm, augmented) if found is None else found

    def hard(self, arm: str, augmented: bool) -> np.ndarray | None:
        """Under hard labels."""
        return self._found.get((arm, "hard", augmented))


def _read(table: pa.Table) -> Iterator[tuple[list[str], Judged]]:
    """The arms of a unit, with the sets that they belong to."""
    rows: dict[tuple[str, bool], list[Line]] = {}
    for row in table.to_pylist():
        rows.setdefault((row["labels"], row["augmented"]), []).append(row)
    for of_arm in rows.values():
        first = of_arm[0]
        known = {name: first[name] for name in ("arm", "net", "labels", "augmented", "main", "learning_rate", "rows")}
        yield first["sets"], Judged(**known, correct_SN=np.array([row["correct"] for row in of_arm], bool))


def _told(arm: Judged) -> Line:
    seeds, test_rows = arm.correct_SN.shape
    return {"arm": arm.arm, "net": arm.net, "labels": arm.labels, "augmented": arm.augmented, "main": arm.main, "seeds": seeds, "test_rows": test_rows}


def _arm_line(arm: Judged) -> Line:
    accuracy, low, high = mean_interval(arm.correct_SN)
    return {"kind": "arm", **_told(arm), "rows": arm.rows, "learning_rate": arm.learning_rate, "accuracy": accuracy, "low": low, "high": high}


def _difference_lines(arms: Sequence[Judged]) -> list[Line]:
    """The candidate's gain over each other arm on the same net under the same labels; hard ones, where the other has no soft ones."""
    lines = []
    for arm in (arm for arm in arms if arm.arm == "candidate"):
        alike = {(other.arm, other.labels): other for other in arms if (other.net, other.augmented) == (arm.net, arm.augmented)}
        for name in dict.fromkeys(other for other, _ in alike if other != "candidate"):
            other = alike.get((name, arm.labels)) or alike.get((name, "hard"))
            if other is None:
                continue
            gain, low, high = mean_interval(arm.correct_SN.astype(float) - other.correct_SN, -1, 1)
            lines.append({"kind": "difference", **_told(arm), "against": f"{name}.{other.labels}", "gain": gain, "low": low, "high": high})
    return lines


def _ranking_lines(of: _Of, label_weight: float, augment_weight: float) -> list[Line]:
    augmented = of.augmented
    own_SN, random_SN = of.own("candidate", augmented), of.own("random", augmented)
    hard_SN, real_SN = of.hard("candidate", augmented), of.hard("real", augmented)
    other_SN, other_random_SN = of.own("candidate", not augmented), of.own("random", not augmented)
    figures: dict[str, Estimate] = {}
    if own_SN is not None and random_SN is not None:
        figures["IOR"] = improvement_over_random(own_SN, random_SN)
        if real_SN is not None and hard_SN is not None:
            figures["HLR"] = hard_label_recovery(real_SN, hard_SN)
            figures["LRS"] = label_robust_score(real_SN, hard_SN, own_SN, random_SN, label_weight)
        if other_SN is not None and other_random_SN is not None:
            share = augment_weight if augmented else 1 - augment_weight
            figures["ARS"] = augmentation_robust_score(own_SN, random_SN, other_SN, other_random_SN, share)
    return [
        {"kind": "ranking", "metric": metric, "labels": of.labels, "augmented": augmented, "value": value, "low": low, "high": high}
        for metric, (value, low, high) in figures.items()
    ]


def _seed_lines(arm: Judged) -> list[Line]:
    told = {name: value for name, value in _told(arm).items() if name not in ("seeds", "test_rows")}
    return [{"kind": "seed", **told, "seed": seed, "accuracy": float(correct_N.mean())} for seed, correct_N in enumerate(arm.correct_SN)]
