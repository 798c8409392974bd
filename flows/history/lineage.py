"""A snapshot's lineage as lines of text: each stage with its figures, and left of it the edges of the DAG."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.report.lineage import feeds, owner, published, seconds_by_owner, visible

__all__ = ["Line", "lanes", "lineage"]

_MARKS = {"samples": "●", "model": "○", "metrics": "◇", "snapshot": "◆"}


@dataclass(frozen=True)
class Line:
    """A stage, or at the end the snapshot itself.

    Args:
        graph: its line of the drawing: ● rows, ○ models, ◇ figures, ◆ the snapshot.
        inputs: stages, or splits of them, that it is made from.
        seconds: its own, and those of its hidden stages.
        hidden: stages that stillroom added for it: control twins, students.
    """

    graph: str
    name: str
    op: str
    version: int | None
    gives: str
    inputs: list[str]
    rows: int
    counts: dict[str, int | None]
    fingerprint: str
    digest: str
    table: str
    table_version: int
    seconds: float
    state: str
    hidden: list[str] = field(default_factory=list)


def lineage(manifest: Mapping[str, Any]) -> list[Line]:
    """The stages of a snapshot in an order in which they can run and that crosses few edges, the snapshot last."""
    whole = dict(manifest)
    stages = {stage["name"]: stage for stage in whole["stages"]}
    shown = {stage["name"]: stage for stage in visible(whole)}
    name = f"{whole['name']}@{whole['number']}"
    sources = {stage: feeds(shown[stage], stages) for stage in shown} | {name: list(published(whole).values())}
    parents = {stage: list(dict.fromkeys(one.stage for one in found if one.stage in shown)) for stage, found in sources.items()}
    order = _order(parents, name)
    graphs = lanes([(one, parents[one]) for one in order], {one: _MARKS[_gives(shown, one)] for one in order})
    seconds = seconds_by_owner(whole)
    hidden = {one: [stage["name"] for stage in whole["stages"] if stage.get("hidden") and owner(stage["name"]) == one] for one in shown}
    told = {one: [source.stage + (f".{source.split}" if source.split else "") for source in dict.fromkeys(sources[one])] for one in order}
    lines = [_line(shown[one], graphs[one], told[one], seconds[one], hidden[one]) for one in order if one in shown]
    table = whole["table"]
    end = Line(
        graphs[name], name, "published", None, "snapshot", told[name], whole["rows"], {}, table["fingerprint"], whole["digest"], table["name"],
        table["version"], whole["seconds"], "",
    )  # fmt: skip
    return [*lines, end]


def lanes(nodes: Sequence[tuple[str, Sequence[str]]], marks: Mapping[str, str]) -> dict[str, str]:
    """Draw a DAG beside a list of its nodes, a line a node, as `git log --graph` does.

    A lane carries what a node gives down to the last that reads it, which takes the lane over. A line
    that passes behind a lane leaves its │ whole; one that comes from a lane has ├, ┤, ┼, or an end.

    Args:
        nodes: names with those that they read, which come before them.
        marks: the sign of each node.
    """
    readers = Counter(parent for _, parents in nodes for parent in parents)
    open_lanes: list[str | None] = []
    drawn = {}
    for name, parents in nodes:
        places = {open_lanes.index(parent): parent for parent in parents}
        readers.subtract(parents)
        ending = sorted(lane for lane, parent in places.items() if not readers[parent])
        free = next((lane for lane, holder in enumerate(open_lanes) if holder is None), len(open_lanes))
        at = ending[0] if ending else free
        if at == len(open_lanes):
            open_lanes.append(None)
        drawn[name] = _drawn(open_lanes, at, places, ending, marks[name])
        for lane in ending:
            open_lanes[lane] = None
        open_lanes[at] = name if readers[name] else None
        while open_lanes and open_lanes[-1] is None:
            open_lanes.pop()
    return drawn


def _drawn(open_lanes: Sequence[str | None], at: int, places: Mapping[int, str], ending: Sequence[int], mark: str) -> str:
    """One line: the node's sign, its parents' lanes, and those that pass by."""
    low, high = min([at, *places]), max([at, *places])
    line = ""
    for lane, holder in enumerate(open_lanes):
        within = low < lane < high
        if lane == at:
            sign = mark
        elif lane in ending:
            sign = "┴" if within else "╰" if lane < at else "╯"
        elif lane in places:
            sign = "┼" if within else "├" if lane < at else "┤"
        else:
            sign = "│" if holder else "─" if within else " "
        line += sign + ("─" if low <= lane < high else " ")
    return line.rstrip()


def _order(parents: Mapping[str, Sequence[str]], last: str) -> list[str]:
    """Each node after its parents, a branch at a time, `last` at the end."""
    read = {parent for found in parents.values() for parent in found}
    ends = [name for name in parents if name not in read and name != last]
    order: dict[str, None] = {}
    waiting = [(name, False) for name in reversed([*ends, last])]
    while waiting:
        name, whole = waiting.pop()
        if name in order:
            continue
        if whole:
            order[name] = None
        else:
            waiting += [(name, True), *((parent, False) for parent in reversed(parents[name]))]
    return list(order)


def _gives(shown: Mapping[str, Any], name: str) -> str:
    return str(shown[name].get("gives") or "samples") if name in shown else "snapshot"


def _line(stage: Mapping[str, Any], graph: str, inputs: list[str], seconds: float, hidden: list[str]) -> Line:
    table = stage.get("table") or {}
    return Line(
        graph, stage["name"], stage["op"], stage.get("version"), stage.get("gives", "samples"), inputs, stage["rows"], dict(stage.get("counts") or {}),
        stage.get("fingerprint") or "", stage.get("digest") or "", table.get("name", ""), table.get("version", 0), round(seconds, 3),
        stage.get("state", ""), hidden,
    )  # fmt: skip
