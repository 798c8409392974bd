"""Charts: marks stand where their numbers say, and text is escaped."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.report.charts import MAX_CLASSES, Scale, axis, histogram, interval_mark, parts_bar, shown_labels, ticks


def numbers(svg, attribute):
    return [float(value) for value in re.findall(rf'\b{attribute}="(-?[\d.]+)%?"', svg)]


def test_an_interval_spans_its_bounds_in_proportion():
    scale = Scale(0.0, 1.0)
    svg = str(interval_mark(0.5, 0.25, 0.75, scale, css=""))
    (middle,) = numbers(svg, "cx")
    whisker = re.search(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', svg)
    low, high = float(whisker[1]), float(whisker[2])
    assert middle == 50 and (low + high) / 2 == 50
    assert (high - low) / (scale.at(1) - scale.at(0)) == pytest.approx(0.5)


def test_zero_has_a_line_where_it_is_asked_for():
    scale = Scale(-0.01, 0.03)
    assert f'class="zero" x1="{scale.at(0):.2f}%"' in interval_mark(0.01, 0.0, 0.02, scale, css="", zero=True)
    assert "zero" not in interval_mark(0.01, 0.0, 0.02, scale, css="")


@given(st.floats(-1, 1), st.floats(1e-4, 1), st.integers(3, 8))
def test_ticks_are_few_even_steps_inside_the_scale(low, span, most):
    scale = Scale(low, low + span, most)
    marked = ticks(scale)
    assert 1 <= len(marked) <= most
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in marked)
    steps = {round(right - left, 9) for left, right in pairwise(marked)}
    assert len(steps) <= 1
    assert all(f"{step:.0e}"[0] in "125" for step in steps)


def test_a_scale_of_one_value_still_has_room():
    scale = Scale.over([0.5, 0.5])
    assert scale.at(0.5) == 50 and ticks(scale)


def test_axis_labels_stand_under_their_ticks():
    scale = Scale(0.0, 1.0)
    assert numbers(str(axis(scale, [(0.0, "0"), (1.0, "1")])).replace("x1", "").replace("x2", ""), "x") == [scale.at(0), scale.at(1)]


def test_bars_are_as_high_as_their_counts_with_synthetic_on_top():
    svg = str(histogram(["a", "b"], Counter(a=10, b=5), Counter(b=15), caption="rows"))
    bars = [
        (css, float(y), float(height)) for css, y, height in re.findall(r'<rect class="(\w+)" x="[\d.]+%" y="([\d.]+)" width="[\d.]+%" height="([\d.]+)"', svg)
    ]
    (_, a_top, a), (_, b_top, b), (kind, top, synthetic) = bars
    assert (a / synthetic, b / a) == (pytest.approx(10 / 15), pytest.approx(0.5))
    assert kind == "synthetic" and top + synthetic == pytest.approx(b_top)
    assert a_top + a == pytest.approx(b_top + b)
    assert "<title>b: 20, 15 of them synthetic</title>" in svg


def test_a_class_may_be_called_anything():
    svg = histogram(["<b>&\"'", "x"], Counter({"<b>&\"'": 1}), Counter(), caption='<i>"')
    assert "<b>" not in svg and "&lt;b&gt;" in svg and "<i>" not in svg


def test_of_many_classes_the_largest_and_the_smallest_are_shown():
    names = [f"class {index}" for index in range(1_000)]
    before = Counter({name: 1_000 - index for index, name in enumerate(names)})
    shown = shown_labels(names, before)
    assert len(shown) == MAX_CLASSES
    assert shown[0] == "class 0" and shown[-1] == "class 999"
    assert shown_labels(names[:MAX_CLASSES], before) == names[:MAX_CLASSES]


def test_parts_fill_the_bar_in_proportion():
    svg = str(parts_bar([("long", 3.0), ("short", 1.0)], ["3 s", "1 s"]))
    assert numbers(svg, "width")[1:] == [75, 25] and numbers(svg, "x") == [0, 75]
    assert "<title>long: 3 s</title>" in svg
