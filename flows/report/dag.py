"""The recipe's DAG as inline SVG: stages in layers, rows flowing down, hidden stages folded into their owner."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

__all__ = ["Edge", "Node", "draw", "layers", "order_layers"]

_WIDTH, _HEIGHT = 152, 54
_GAP_X, _GAP_Y = 16, 38
_LANE = 10  # the room that an edge needs where it passes a layer
_SWEEPS = 8
_BEND_PULL = 8


@dataclass(frozen=True)
class Node:
    """A box: three lines of text, a class for its look (`samples`, `model`, `metrics`, `snapshot`), and how many hidden stages stand behind it."""

    name: str
    title: str
    detail: str
    figure: str
    css: str
    hidden: int = 0


@dataclass(frozen=True)
class Edge:
    """An arrow from one node to another; `rows` is how many flow (None: a model or figures), `label` the split."""

    start: str
    stop: str
    label: str = ""
    rows: int | None = None


@dataclass
class _Place:
    """A node, or a bend of an edge that passes a layer, in the layout."""

    width: float
    x: float = 0.0
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


def draw(nodes: Sequence[Node], edges: Sequence[Edge]) -> Markup:
    """Lay the graph out and draw it; its size is fixed, so that the text stays readable: let it scroll."""
    depth = layers([node.name for node in nodes], edges)
    places, rows, paths = _bent(nodes, edges, depth)
    rows = order_layers(rows, {name: place.above for name, place in places.items()}, {name: place.below for name, place in places.items()})
    _spread(rows, places)
    left = min(place.x - place.width / 2 for place in places.values())
    for place in places.values():
        place.x += 1 - left
    width = max(place.x + place.width / 2 for place in places.values()) + 1
    height = len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2
    most = max((edge.rows or 0 for edge in edges), default=0) or 1
    titles = {node.name: node.title for node in nodes}
    said = [f"{titles[edge.start]}{'.' + edge.label if edge.label else ''} to {titles[edge.stop]}" for edge in edges]
    arrows = [_arrow(edge, [(places[name].x, layer) for name, layer in path], most, words) for edge, path, words in zip(edges, paths, said, strict=True)]
    boxes = [_box(node, places[node.name].x, depth[node.name]) for node in nodes]
    label = "the recipe as a graph: " + ", ".join(said)
    return Markup('<svg class="dag" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, height, label, Markup("").join(arrows + boxes)
    )


def layers(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of each node: below everything it depends on; a node with no inputs as low as it can stand.

    Args:
        names: in topological order.
    """
    above, below = defaultdict(list), defaultdict(list)
    for edge in edges:
        above[edge.stop].append(edge.start)
        below[edge.start].append(edge.stop)
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = max((depth[parent] + 1 for parent in above[name]), default=0)
    for name in reversed(names):
        if below[name] and not above[name]:
            depth[name] = min(depth[child] for child in below[name]) - 1
    first = min(depth.values(), default=0)
    return {name: layer - first for name, layer in depth.items()}


def order_layers(rows: list[list[str]], above: Mapping[str, Sequence[str]], below: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Order each layer so that edges cross less: sweeps by the mean place of neighbours, the best order seen."""
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        rows = [list(row) for row in rows]
        for row in rows if sweep % 2 == 0 else reversed(rows):
            at = {name: place for each in rows for place, name in enumerate(each)}
            row.sort(key=lambda name: sum(at[other] for other in neighbours[name]) / len(neighbours[name]) if neighbours[name] else at[name])
        if (crossings := _crossings(rows, below)) < fewest:
            best, fewest = rows, crossings
    return best


def _bent(nodes: Sequence[Node], edges: Sequence[Edge], depth: Mapping[str, int]) -> tuple[dict[str, _Place], list[list[str]], list[list[tuple[str, int]]]]:
    """Places, the names in each layer, and the way of each edge, with a bend in every layer that it passes."""
    places = {node.name: _Place(_WIDTH) for node in nodes}
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for node in nodes:
        rows[depth[node.name]].append(node.name)
    paths = []
    for index, edge in enumerate(edges):
        path = [(edge.start, depth[edge.start])]
        for layer in range(depth[edge.start] + 1, depth[edge.stop]):
            bend = f"\0{index}.{layer}"
            places[bend] = _Place(_LANE)
            rows[layer].append(bend)
            path.append((bend, layer))
        path.append((edge.stop, depth[edge.stop]))
        for (upper, _), (lower, _) in pairwise(path):
            places[upper].below.append(lower)
            places[lower].above.append(upper)
        paths.append(path)
    return places, rows, paths


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        at = {name: place for place, name in enumerate(lower)}
        ends = [sorted(at[other] for other in below[name]) for name in upper]
        total += sum(left > right for index, lefts in enumerate(ends) for rights in ends[index + 1 :] for left in lefts for right in rights)
    return total


def _spread(rows: Sequence[Sequence[str]], places: Mapping[str, _Place]) -> None:
    """Give every place an x near its neighbours' mean, keeping the order and the distances."""
    for row in rows:
        _pack(row, places, dict.fromkeys(row, 0.0))
    for sweep in range(8 * _SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {}
            for name in row:
                place = places[name]
                # A bend counts more than a box: long edges run straight.
                near = [(_BEND_PULL if place.width == places[other].width == _LANE else 1, places[other].x) for other in (*place.above, *place.below)]
                wanted[name] = sum(pull * x for pull, x in near) / sum(pull for pull, _ in near) if near else place.x
            _pack(row, places, wanted)


def _pack(row: Sequence[str], places: Mapping[str, _Place], wanted: Mapping[str, float]) -> None:
    """Places of one layer at the wanted x, pushed apart: least squares under order and distance (pool adjacent violators)."""
    offset, offsets = 0.0, []
    for index, name in enumerate(row):
        if index:
            offset += (places[row[index - 1]].width + places[name].width) / 2 + _GAP_X
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []  # mean of (wanted - offset), members
    for name, away in zip(row, offsets, strict=True):
        mean, members = wanted[name] - away, 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, members = (before * count + mean * members) / (count + members), count + members
        blocks.append((mean, members))
    shifts = [mean for mean, members in blocks for _ in range(members)]
    for name, away, shift in zip(row, offsets, shifts, strict=True):
        places[name].x = shift + away


def _arrow(edge: Edge, path: Sequence[tuple[float, int]], most: int, said: str) -> Markup:
    """A curve through the bends of an edge, as wide as its share of rows."""
    start, stop = path[0], path[-1]
    at = (start[0], _top(start[1]) + _HEIGHT)
    curve = [f"M{at[0]:.1f},{at[1]:.1f}"]
    for x, layer in path[1:]:
        target = (x, _top(layer))
        middle = (at[1] + target[1]) / 2
        curve.append(f"C{at[0]:.1f},{middle:.1f} {target[0]:.1f},{middle:.1f} {target[0]:.1f},{target[1]:.1f}")
        at = target
        if layer != stop[1]:
            at = (x, _top(layer) + _HEIGHT)
            curve.append(f"V{at[1]:.1f}")
    width = 1.2 if edge.rows is None else 1.2 + 6.8 * edge.rows / most
    said += "" if edge.rows is None else f": {edge.rows:,} rows"
    css = "flow thin" if edge.rows is None else "flow"
    line = Markup('<path class="{}" d="{}" stroke-width="{:.1f}"><title>{}</title></path>').format(css, " ".join(curve), width, said)
    if not edge.label:
        return line
    # Splits part where they leave a stage and arrive alone: there is room for a word at the end.
    x, y = (path[-2][0] + stop[0]) / 2, _top(stop[1]) - _GAP_Y / 2 + 4
    return line + Markup('<text class="split" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x, y, _fit(edge.label, 28))


def _box(node: Node, x: float, layer: int) -> Markup:
    left, top = x - _WIDTH / 2, _top(layer)
    lines = Markup("").join(
        Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(css, x, top + down, _fit(text, most))
        for css, down, text, most in (("name", 17, node.title, 18), ("detail", 31, node.detail, 27), ("figure", 45, node.figure, 27))
    )
    frame = Markup('<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="2"/>').format(left, top, _WIDTH, _HEIGHT)
    said = f"{node.title}: {node.detail}, {node.figure}" + (f", with {node.hidden} hidden" if node.hidden else "")
    behind = Markup('<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="2"/>').format(left + 4, top + 4, _WIDTH, _HEIGHT) if node.hidden else ""
    return Markup('<g class="node {}"><title>{}</title>{}{}{}</g>').format(node.css, said, behind, frame, lines)


def _top(layer: int) -> float:
    return 1 + layer * (_HEIGHT + _GAP_Y)


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
