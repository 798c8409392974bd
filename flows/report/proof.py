"""The proof as the report shows it: arms and differences, each with its interval, on a common scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from flows.judged import MainLine
from flows.report.charts import Scale, axis, interval_mark, ticks
from flows.report.sentences import arm_label, chosen_arms, interval, percent, points

__all__ = ["Forest", "ForestLine", "arms_forest", "differences_forest", "forest_of", "set_forest"]


@dataclass(frozen=True)
class ForestLine:
    """One line: whom it is about, its mark, its figures, and what the interval says."""

    label: str
    detail: str
    mark: Markup
    figure: str
    bounds: str
    css: str
    note: str = ""


@dataclass(frozen=True)
class Forest:
    """A forest plot: lines over one axis."""

    lines: list[ForestLine]
    axis: Markup


def arms_forest(proof: dict[str, Any], *, only_chosen: bool = False) -> Forest:
    """Test accuracy of the arms in the proof's order, or of those that the headline compares."""
    chosen = chosen_arms(proof)
    arms = list(chosen.values()) if only_chosen else proof["arms"]
    scale = Scale.over([bound for arm in arms for bound in (arm["low"], arm["high"])], 3 if only_chosen else 6)
    lines = []
    for arm in arms:
        label, detail = arm_label(arm["arm"])
        css = "chosen" if arm is chosen.get("candidate") else ""
        mark = interval_mark(
            arm["accuracy"], arm["low"], arm["high"], scale, css=css, title=f"{label}, {detail}: {percent(arm['accuracy'])} {interval(arm['low'], arm['high'])}"
        )
        lines.append(ForestLine(label, detail, mark, percent(arm["accuracy"]), interval(arm["low"], arm["high"]), css))
    return Forest(lines, axis(scale, [(tick, percent(tick, _digits(ticks(scale)))) for tick in ticks(scale)]))


def differences_forest(proof: dict[str, Any]) -> Forest | None:
    """Paired differences, in points; what holds zero shows nothing."""
    differences = proof.get("differences") or []
    if not differences:
        return None
    chosen = chosen_arms(proof)
    pair = tuple(chosen[role]["arm"] if role in chosen else None for role in ("candidate", "control"))
    scale = Scale.over([0.0, *(bound for difference in differences for bound in (difference["low"], difference["high"]))])
    lines = []
    for difference in differences:
        low, high = difference["low"], difference["high"]
        (label, detail), (other, other_detail) = arm_label(difference["arm"]), arm_label(difference["against"])
        against = f"against {other}, {other_detail}"
        css = "chosen" if (difference["arm"], difference["against"]) == pair else ""
        note = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        bounds = f"[{points(low)}, {points(high)}]"
        mark = interval_mark(
            difference["gain"], low, high, scale, css=css, zero=True, title=f"{label} {against}: {points(difference['gain'])} points {bounds}, {note}"
        )
        lines.append(ForestLine(label if detail == other_detail else f"{label}, {detail}", against, mark, points(difference["gain"]), bounds, css, note))
    digits = _digits(ticks(scale))
    return Forest(lines, axis(scale, [(tick, "0" if tick == 0 else points(tick, digits)) for tick in ticks(scale)], zero=True))


def set_forest(judged: MainLine) -> Forest:
    """Test accuracy of a judged set and of as many real samples, as the headline compares them."""
    arms = [(judged.title, judged.candidate, "chosen"), *((name, judged.rivals[name], "") for name in ("random", "herding") if name in judged.rivals)]
    lines = [(name, f"{arm['labels']} labels", arm["accuracy"], arm["low"], arm["high"], css) for name, arm, css in arms]
    return forest_of(lines, paired=False, most_ticks=3)


def forest_of(lines: Sequence[tuple[str, str, float, float, float, str]], *, paired: bool, most_ticks: int = 6) -> Forest:
    """A forest plot of any figures: (label, detail, value, low, high, style) each; `paired` ones are gains, shown in points over a line at zero."""
    scale = Scale.over([*([0.0] if paired else []), *(bound for line in lines for bound in line[3:5])], most_ticks)
    drawn = []
    for label, detail, value, low, high, css in lines:
        figure, bounds = (points(value), f"[{points(low)}, {points(high)}]") if paired else (percent(value), interval(low, high))
        note = "" if not paired else "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        mark = interval_mark(value, low, high, scale, css=css, zero=paired, title=f"{label}, {detail}: {figure} {bounds}")
        drawn.append(ForestLine(label, detail, mark, figure, bounds, css, note))
    digits = _digits(ticks(scale))
    marks = [(tick, ("0" if tick == 0 else points(tick, digits)) if paired else percent(tick, digits)) for tick in ticks(scale)]
    return Forest(drawn, axis(scale, marks, zero=paired))


def _digits(marked: list[float]) -> int:
    """Decimals that tell the marks apart, in per cent."""
    step = 100 * (marked[1] - marked[0]) if len(marked) > 1 else 0.1
    return next((digits for digits in range(4) if abs(step - round(step, digits)) < 1e-6), 4)
