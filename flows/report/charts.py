"""Charts as inline SVG, by hand: class histograms, intervals, a bar of parts.

Horizontal places are per cent of the width, so that a chart fills its column on any screen while its
text keeps its size. Colours are classes: the page's style sheet decides, for light and dark.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flows.report.sentences import count, percent

__all__ = ["Scale", "axis", "histogram", "interval_mark", "parts_bar", "shown_labels", "ticks"]

MAX_CLASSES = 40
_BAR_HEIGHT = 84
_ROW_HEIGHT = 30
# Lines of the grid reach into the rows above and below, so that they meet.
_REACH = 18
# Where a chart of intervals keeps clear of its edges, in per cent, so that marks and tick labels aren't cut.
_MARGIN = 4.0


@dataclass(frozen=True)
class Scale:
    """A linear scale onto per cent of a chart's width, with at most `most_ticks` round numbers marked on it."""

    low: float
    high: float
    most_ticks: int = 6

    def at(self, value: float) -> float:
        """The place of a value, clipped to the chart."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return _MARGIN + (100 - 2 * _MARGIN) * min(1.0, max(0.0, share))

    @classmethod
    def over(cls, values: Sequence[float], most_ticks: int = 6) -> "Scale":
        """A scale that holds all values, with a little air."""
        low, high = min(values), max(values)
        air = 0.04 * (high - low) or 0.01
        return cls(low - air, high + air, most_ticks)


def ticks(scale: Scale) -> list[float]:
    """Round numbers within a scale: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((scale.high - scale.low) / scale.most_ticks))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
        if last - first + 1 <= scale.most_ticks:
            break
    return [index * step for index in range(first, last + 1)]


def interval_mark(value: float, low: float, high: float, scale: Scale, *, css: str, zero: bool = False, title: str = "") -> Markup:
    """One line of a forest plot: its interval, its value, the grid behind, and a line at zero where asked."""
    middle = _ROW_HEIGHT / 2
    lines = [_vertical(scale.at(tick), -_REACH, _ROW_HEIGHT + _REACH, "grid") for tick in ticks(scale)]
    if zero:
        lines.append(_vertical(scale.at(0), -_REACH, _ROW_HEIGHT + _REACH, "zero"))
    left, right = scale.at(low), scale.at(high)
    lines += [
        Markup('<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}"/>').format(left, right, middle, middle),
        _vertical(left, middle - 4, middle + 4, "whisker"),
        _vertical(right, middle - 4, middle + 4, "whisker"),
        Markup('<circle cx="{:.2f}%" cy="{}" r="4.5"/>').format(scale.at(value), middle),
    ]
    return _svg(lines, _ROW_HEIGHT, f"mark {css}", title)


def axis(scale: Scale, labels: Sequence[tuple[float, str]], *, zero: bool = False) -> Markup:
    """The line of tick labels under a forest plot."""
    lines = [_vertical(scale.at(tick), 0, 5, "zero" if zero and tick == 0 else "grid") for tick, _ in labels]
    lines += [Markup('<text x="{:.2f}%" y="18" text-anchor="middle">{}</text>').format(scale.at(tick), label) for tick, label in labels]
    return _svg(lines, 22, "axis", "")


def histogram(labels: Sequence[str], real: Counter[str], synthetic: Counter[str], *, caption: str) -> Markup:
    """Bars of rows by class, real below, synthetic on top; the heights are relative to the largest bar.

    Args:
        labels: the classes, in order: give both charts of a pair the same (see `shown_labels`).
    """
    top = max([real[label] + synthetic[label] for label in labels], default=0) or 1
    slot = 100 / max(1, len(labels))
    parts, roomy = [], len(labels) <= 20
    base = _BAR_HEIGHT + 16
    for index, label in enumerate(labels):
        both = real[label] + synthetic[label]
        total, height = _BAR_HEIGHT * both / top, _BAR_HEIGHT * real[label] / top
        left, width = slot * (index + 0.14), slot * 0.72
        said = f"{label}: {count(both)}" + (f", {count(synthetic[label])} of them synthetic" if synthetic[label] else "")
        bars = [_bar(left, base - height, width, height, "real")] if height else []
        if synthetic[label]:
            bars.append(_bar(left, base - total, width, total - height, "synthetic"))
        middle = slot * (index + 0.5)
        if roomy:
            bars.append(Markup('<text class="value" x="{:.2f}%" y="{:.1f}" text-anchor="middle">{}</text>').format(middle, base - total - 4, count(both)))
            bars.append(Markup('<text x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(middle, base + 16, _shortened(label, len(labels))))
        parts.append(Markup("<g><title>{}</title>{}</g>").format(said, Markup("").join(bars)))
    parts.append(Markup('<line class="base" x1="0" x2="100%" y1="{}" y2="{}"/>').format(base, base))
    return _svg(parts, base + (24 if roomy else 4), "histogram", caption)


def shown_labels(labels: Sequence[str], before: Counter[str]) -> list[str]:
    """The classes that a histogram has room for: all, or the largest and the smallest of the counts before."""
    if len(labels) <= MAX_CLASSES:
        return list(labels)
    ranked = sorted(labels, key=lambda label: -before[label])
    return ranked[: MAX_CLASSES // 2] + ranked[-(MAX_CLASSES // 2) :]


def parts_bar(parts: Sequence[tuple[str, float]], said: Sequence[str]) -> Markup:
    """One bar cut in proportion, the shades alternating; a part's name and figure are its tooltip."""
    whole = sum(value for _, value in parts) or 1
    pieces, left = [], 0.0
    for index, ((name, value), text) in enumerate(zip(parts, said, strict=True)):
        width = 100 * value / whole
        pieces.append(Markup("<g><title>{}: {}</title>{}</g>").format(name, text, _bar(left, 0, width, 12, f"part shade{index % 6}")))
        left += width
    return _svg(pieces, 12, "parts", "; ".join(f"{name} {percent(value / whole, 0)}" for name, value in parts))


def _svg(parts: Sequence[Markup], height: float, css: str, title: str) -> Markup:
    label = Markup(' role="img" aria-label="{}"').format(title) if title else Markup(' aria-hidden="true"')
    return Markup('<svg class="{}" width="100%" height="{:g}"{}>{}</svg>').format(css, height, label, Markup("").join(parts))


def _vertical(at: float, top: float, bottom: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{:g}" y2="{:g}"/>').format(css, at, at, top, bottom)


def _bar(left: float, top: float, width: float, height: float, css: str) -> Markup:
    return Markup('<rect class="{}" x="{:.3f}%" y="{:.2f}" width="{:.3f}%" height="{:.2f}"/>').format(css, left, top, width, height)


def _shortened(label: str, labels: int) -> str:
    """A class name that fits under its bar on a phone."""
    most = max(2, 44 // max(1, labels))
    return label if len(label) <= most else label[: most - 1] + "…"
