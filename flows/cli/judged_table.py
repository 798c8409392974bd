"""Small sets as the terminal shows them: accuracy beside as many real samples, gains with their intervals, and what they say."""

from typing import Any

from flows.cli.shared import cell, output, print_table
from flows.judged import MainLine, main_lines
from flows.report.sentences import interval, outcome_of, points, set_conclusion

__all__ = ["print_judged"]

COLUMNS = {
    "set": "small set",
    "images": "images",
    "net": "net",
    "accuracy": "accuracy %",
    "interval": "95 % interval",
    "against": "against",
    "gain": "points",
    "gain_interval": "95 % interval",
    "says": "",
}


def print_judged(judged: list[dict[str, Any]] | None) -> None:
    """Print a manifest's judged sets: each beside random and herding, and a sentence that claims no more than they show."""
    found = main_lines(judged)
    print_table([line for one in found for line in _lines(one)], COLUMNS, title="small sets, judged on test")
    for one in found:
        output().print(cell(set_conclusion(one)), soft_wrap=True)
    if found:
        output().print()


def _lines(one: MainLine) -> list[dict[str, Any]]:
    """A line for each rival; what is the set's own stands in the first alone."""
    own = one.candidate
    head = {
        "set": one.title,
        "images": own["rows"],
        "net": own["net"],
        "accuracy": 100 * own["accuracy"],
        "interval": interval(own["low"], own["high"]),
    }
    rivals = [_rival(name, one.gains[name]) for name in ("random", "herding") if name in one.gains]
    return [head | rivals[0], *rivals[1:]] if rivals else [head]


def _rival(name: str, gain: dict[str, Any]) -> dict[str, Any]:
    return {
        "against": name,
        "gain": points(gain["gain"]),
        "gain_interval": f"[{points(gain['low'])}, {points(gain['high'])}]",
        "says": {"better": "better", "worse": "worse"}.get(outcome_of(gain), "no gain shown"),
    }
