"""Charts of a comparison: rows by fate, shares of classes, numbers before and after, as inline SVG or plain boxes."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from flows.history.changes import Arm
from flows.history.diff import SplitDiff
from flows.history.drift import Balance, ClassCount, Drift, Summary
from flows.history.words import value_text
from flows.report.charts import MAX_CLASSES, Scale, axis, interval_mark, ticks
from flows.report.proof import Forest, ForestLine
from flows.report.sentences import arm_label, count, interval, percent

__all__ = ["arms_forest", "drift_forest", "fates_bar", "shares_chart", "shown_classes"]

_HEIGHT = 96
_FATES = ("removed", "moved_out", "same", "changed", "moved_in", "added")


def fates_bar(split: SplitDiff, most: int) -> Markup:
    """Rows of a split as one bar: what left, what both have, what is new. Bars of equal `most` have one scale."""
    whole = split.removed + split.moved_out + split.after
    parts = [(fate, getattr(split, fate)) for fate in _FATES]
    boxes = [
        Markup('<i class="fate {}" style="flex-grow:{}" title="{} {}"></i>').format(fate, rows, count(rows), fate.replace("_", " "))
        for fate, rows in parts
        if rows
    ]
    return Markup('<div class="fates" style="width:{:.2f}%">{}</div>').format(100 * whole / max(1, most), Markup("").join(boxes))


def shown_classes(balance: Balance) -> list[ClassCount]:
    """The classes that a chart has room for: all, or those whose share changed most, in the order of the table."""
    if len(balance.classes) <= MAX_CLASSES:
        return balance.classes
    totals = _totals(balance)
    ranked = sorted(balance.classes, key=lambda one: -abs(one.after / totals[1] - one.before / totals[0]))[:MAX_CLASSES]
    return [one for one in balance.classes if one in ranked]


def shares_chart(balance: Balance) -> Markup:
    """Two bars a class, its share of the split before and after, on one scale."""
    classes, totals = shown_classes(balance), _totals(balance)
    shares = [(one.before / totals[0], one.after / totals[1]) for one in classes]
    top = max([share for pair in shares for share in pair], default=0) or 1
    slot, base, roomy = 100 / max(1, len(classes)), _HEIGHT + 14, len(classes) <= 20
    parts = []
    for place, (one, pair) in enumerate(zip(classes, shares, strict=True)):
        said = f"{one.label}: {count(one.before)} ({percent(pair[0])}) before, {count(one.after)} ({percent(pair[1])}) after"
        bars = []
        for side, share in enumerate(pair):
            height = _HEIGHT * share / top
            left = slot * (place + (0.14, 0.51)[side])
            bars.append(
                Markup('<rect class="{}" x="{:.3f}%" y="{:.2f}" width="{:.3f}%" height="{:.2f}"/>').format(
                    ("before", "after")[side], left, base - height, slot * 0.35, height
                )
            )
        if roomy:
            name = one.label if len(one.label) <= (most := max(2, 44 // len(classes))) else one.label[: most - 1] + "…"
            bars.append(Markup('<text x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(slot * (place + 0.5), base + 16, name))
            change = 100 * (pair[1] - pair[0])
            if abs(change) >= 0.1:
                above = base - _HEIGHT * max(pair) / top - 4
                bars.append(
                    Markup('<text class="value" x="{:.2f}%" y="{:.1f}" text-anchor="middle">{}</text>').format(
                        slot * (place + 0.5), above, f"{change:+.1f}".replace("-", "\u2212")
                    )
                )
        parts.append(Markup("<g><title>{}</title>{}</g>").format(said, Markup("").join(bars)))
    parts.append(Markup('<line class="base" x1="0" x2="100%" y1="{}" y2="{}"/>').format(base, base))
    label = f"shares of classes in {balance.split}, before and after"
    return Markup('<svg class="shares" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        base + (24 if roomy else 4), label, Markup("").join(parts)
    )


def drift_forest(drift: Drift) -> Forest:
    """A column's median and middle nine tenths before and after; what is infinite stands at the edge."""
    finite = [value for side in (drift.before, drift.after) for value in side.quantiles if math.isfinite(value)] or [0.0]
    scale = Scale.over(finite, 5)
    lines = [_range_line(name, side, scale, css) for name, side, css in (("before", drift.before, ""), ("after", drift.after, "chosen"))]
    return Forest(lines, axis(scale, [(tick, value_text(float(f"{tick:.6g}"))) for tick in ticks(scale)]))


def arms_forest(arms: Sequence[Arm]) -> Forest:
    """Accuracy of each arm that both proofs have, before and after."""
    scale = Scale.over([bound for arm in arms for bound in (arm.before_low, arm.before_high, arm.after_low, arm.after_high)], 4)
    lines = []
    for arm in arms:
        label, detail = arm_label(arm.arm)
        for side, value, low, high, css in (
            ("before", arm.before, arm.before_low, arm.before_high, ""),
            ("after", arm.after, arm.after_low, arm.after_high, "chosen"),
        ):
            said = f"{label}, {detail}, {side}: {percent(value)} {interval(low, high)}"
            mark = interval_mark(value, low, high, scale, css=css, title=said)
            lines.append(
                ForestLine(
                    label if side == "before" else "", f"{detail}, before" if side == "before" else "after", mark, percent(value), interval(low, high), css
                )
            )
    return Forest(lines, axis(scale, [(tick, percent(tick, 1)) for tick in ticks(scale)]))


def _range_line(name: str, side: Summary, scale: Scale, css: str) -> ForestLine:
    if not side.quantiles:
        return ForestLine(name, f"{count(side.missing)} without a value", Markup(""), "–", "", css)
    low, _, median, _, high = (min(max(value, scale.low), scale.high) for value in side.quantiles)
    bounds = f"[{value_text(side.quantiles[0])}, {value_text(side.quantiles[-1])}]"
    known = side.rows - side.missing
    detail = f"{count(known)} rows" + (f", {count(side.missing)} without" if side.missing else "")
    mark = interval_mark(median, low, high, scale, css=css, title=f"{name}: median {value_text(side.quantiles[2])}, middle nine tenths {bounds}")
    return ForestLine(name, detail, mark, value_text(side.quantiles[2]), bounds, css)


def _totals(balance: Balance) -> list[int]:
    return [max(1, sum(one.before for one in balance.classes)), max(1, sum(one.after for one in balance.classes))]
