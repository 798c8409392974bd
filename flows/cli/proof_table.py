"""A proof as the terminal shows it: accuracy by arm, differences with their intervals, and what they say."""

from collections.abc import Mapping
from typing import Any

from flows.cli.shared import output, print_table
from flows.report.sentences import arm_label, interval, points, verdict

__all__ = ["conclusion", "print_proof"]

# Raw data first, then what the snapshot has to beat, the snapshot, and the snapshot without one stage each.
ORDER = ("raw", "control", "candidate")
ARM_COLUMNS = {
    "set": "trained on",
    "labels": "labels",
    "images": "images",
    "accuracy": "accuracy %",
    "interval": "95 % interval",
    "seeds": "seeds",
    "rate": "rate",
}
DIFFERENCE_COLUMNS = {"arm": "this", "against": "against", "gain": "points", "interval": "95 % interval", "says": ""}


def print_proof(proof: dict[str, Any]) -> None:
    """Print a manifest's proof: arms, differences, and a sentence that claims no more than they show."""
    arms = [_arm_line(arm) for arm in sorted(proof["arms"], key=_place)]
    print_table(arms, ARM_COLUMNS, title="the same student, judged on test")
    differences = [_difference_line(difference) for difference in proof["differences"]]
    print_table(differences, DIFFERENCE_COLUMNS, title="differences in accuracy, paired by seed")
    output().print(f"{conclusion(proof)}\n", soft_wrap=True)


def conclusion(proof: dict[str, Any] | None) -> str:
    """One sentence: whether the snapshot beats its control by more than the interval."""
    judged = verdict(proof)
    if judged.difference is None:
        return "no control was measured, so nothing says that the choice matters"
    gain = f"{points(judged.difference['gain'])} points {_bounds(judged.difference)}"
    return {
        "better": f"the snapshot beats its control by more than the interval: {gain}",
        "worse": f"the snapshot is worse than its control: {gain}",
        "unclear": f"the snapshot does not beat its control beyond the interval: {gain}",
    }[judged.outcome]


def _arm_line(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "set": arm_label(arm["arm"])[0],
        "labels": _labels(arm["arm"]),
        "images": arm["rows"],
        "accuracy": 100 * arm["accuracy"],
        "interval": interval(arm["low"], arm["high"]),
        "seeds": arm["seeds"],
        "rate": f"{arm['lr']:g}",
    }


def _difference_line(difference: Mapping[str, Any]) -> dict[str, Any]:
    low, high = difference["low"], difference["high"]
    return {
        "arm": f"{arm_label(difference['arm'])[0]}, {_labels(difference['arm'])}",
        "against": f"{arm_label(difference['against'])[0]}, {_labels(difference['against'])}",
        "gain": points(difference["gain"]),
        "interval": _bounds(difference),
        "says": "better" if low > 0 else "worse" if high < 0 else "no gain shown",
    }


def _place(arm: Mapping[str, Any]) -> tuple[int, str]:
    name = arm["arm"].partition(".")[0]
    return (ORDER.index(name) if name in ORDER else len(ORDER), arm["arm"])


def _labels(arm: str) -> str:
    """Hard: plain images and class labels. Stored: the views and the teacher's labels that a snapshot keeps."""
    return arm.rpartition(".")[2]


def _bounds(difference: Mapping[str, Any]) -> str:
    return f"[{points(difference['low'])}, {points(difference['high'])}]"
