"""How comparisons are said: values, changes and the one sentence, the same in the terminal and on the page."""

import json
import math
from typing import Any

from flows.history.changes import Change, StageChange
from flows.history.diff import Diff
from flows.history.drift import Summary
from flows.report.sentences import count

__all__ = ["ARROW", "STATUS", "change_text", "headline", "range_text", "stage_text", "value_text"]

ARROW = "→"
_MINUS = "\u2212"
_MAX_VALUE = 80
# What a stage's status means, for people.
STATUS = {
    "same": "the same",
    "renamed": "renamed",
    "changed": "changed",
    "data": "reads other data",
    "follows": "follows",
    "added": "new",
    "removed": "gone",
}


def headline(diff: Diff) -> str:
    """What became of the rows, in a sentence."""
    before, after, total = diff.before, diff.after, diff.total
    if before.name == after.name:
        return f"{before.name} is compared with itself."
    if diff.same:
        return f"{after.name} holds just what {before.name} holds: {count(after.rows)} rows of the same digest."
    if not diff.shared:
        return f"{after.name} has none of the {count(before.rows)} rows of {before.name}; all of its {count(after.rows)} are new."
    touched = sum(split.changed for split in diff.splits)
    moved = total.moved_in
    kept = f"all {count(before.rows)} rows" if not total.removed else f"{count(diff.shared)} of the {count(before.rows)} rows"
    fates = [f"{count(touched)} of them changed"] if touched else []
    fates += [f"{count(moved)} {'moved' if touched else 'of them moved'} to another split"] if moved else []
    fates = fates or ["unchanged"]
    ends = [f"{count(total.removed)} are gone"] if total.removed else []
    ends += [f"{count(total.added)} are new"] if total.added else []
    return f"{after.name} has {kept} of {before.name}, {' and '.join(fates)}" + (f"; {' and '.join(ends)}." if ends else ".")


def value_text(value: Any) -> str:
    """A value of a row or of a recipe, short: numbers with four digits that count, text as it is."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value).replace("-", _MINUS)
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.4g}".replace("inf", "∞").replace("-", _MINUS)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def change_text(change: Change) -> str:
    """A value that differs: `keep 0.1 → 0.2`."""
    return f"{change.what} {value_text(change.before)} {ARROW} {value_text(change.after)}"


def stage_text(stage: StageChange) -> str:
    """Why a stage differs: what is written otherwise, else its status."""
    said = [change_text(change) for change in stage.differences]
    said += [f"other data behind {', '.join(stage.data)}"] if stage.data else []
    return "; ".join(said) or STATUS[stage.status]


def range_text(summary: Summary) -> str:
    """Median and the middle nine tenths: `0.31 (0.02 to 1.1)`."""
    if not summary.quantiles:
        return "nothing"
    low, _, median, _, high = summary.quantiles
    return value_text(median) if low == high else f"{value_text(median)} ({value_text(low)} to {value_text(high)})"
