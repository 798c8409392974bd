"""The drawn graph: arrows lead down, boxes don't overlap, edges cross less than they did."""

import re
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from flows.report.dag import Edge, Node, draw, layers, order_layers


@st.composite
def graphs(draw_from):
    """A DAG of up to 14 stages, each but the first few reading from one to three before it."""
    count = draw_from(st.integers(2, 14))
    nodes = [Node(f"n{index}", f"n{index}", "op", "1 row", "samples") for index in range(count)]
    pairs = {(f"n{parent}", f"n{child}") for child in range(1, count) for parent in draw_from(st.sets(st.integers(0, child - 1), max_size=3))}
    return nodes, [Edge(start, stop, rows=1) for start, stop in sorted(pairs)]


def boxes(svg):
    """Left, top, right, bottom of every box that is no shadow, by its title."""
    found = {}
    for title, body in re.findall(r'<g class="node [^"]*"><title>(\w+):[^<]*</title>(.*?)</g>', svg):
        left, top, width, height = map(float, re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"', body)[-1])
        found[title] = (left, top, left + width, top + height)
    return found


@given(graphs())
def test_every_arrow_leads_down(graph):
    nodes, edges = graph
    depth = layers([node.name for node in nodes], edges)
    assert all(depth[edge.start] < depth[edge.stop] for edge in edges)
    assert min(depth.values()) == 0


@given(graphs())
def test_boxes_lie_apart_and_inside_the_picture(graph):
    nodes, edges = graph
    svg = str(draw(nodes, edges))
    width, height = map(float, re.search(r'width="(\d+)" height="(\d+)"', svg).groups())
    found = boxes(svg)
    assert set(found) == {node.name for node in nodes}
    assert all(left >= 0 and top >= 0 and right <= width + 1 and bottom <= height + 1 for left, top, right, bottom in found.values())
    for one, other in combinations(found.values(), 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        above = one[3] <= other[1] or other[3] <= one[1]
        assert beside or above


def test_a_stage_that_reads_nothing_stands_right_above_its_first_reader():
    depth = layers(
        ["raw", "split", "clean", "teacher", "labels"], [Edge("raw", "split"), Edge("split", "clean"), Edge("clean", "labels"), Edge("teacher", "labels")]
    )
    assert depth == {"raw": 0, "split": 1, "clean": 2, "teacher": 2, "labels": 3}


def test_crossed_edges_are_uncrossed():
    below = {"a": ["y"], "b": ["x"], "x": [], "y": []}
    above = {"a": [], "b": [], "x": ["b"], "y": ["a"]}
    upper, lower = order_layers([["a", "b"], ["x", "y"]], above, below)
    assert (upper.index("a") < upper.index("b")) == (lower.index("y") < lower.index("x"))


def test_an_arrow_is_as_wide_as_its_share_of_rows_and_a_model_s_is_thin():
    nodes = [Node(name, name, "", "", "samples") for name in ("all", "some", "end")]
    svg = str(draw(nodes, [Edge("all", "end", "train", 1000), Edge("some", "end", "", 100), Edge("all", "some")]))
    widths = {said: float(width) for width, said in re.findall(r'stroke-width="([\d.]+)"><title>([^<]*)</title>', svg)}
    assert widths["all.train to end: 1,000 rows"] > 3 * widths["some to end: 100 rows"] > 3 * widths["all to some"]


def test_names_are_escaped_and_cut():
    svg = draw([Node("x", "<script>" * 9, "op", "figure", "samples")], [])
    assert "<script>" not in svg and "…</text>" in svg
