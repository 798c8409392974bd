"""What a manifest says of its stages: who feeds whom, what is published, and what each cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.report.dag import Edge, Node
from flows.report.sentences import count, duration
from flows.report.survey import Survey
from schemas.yaml import read_yaml

__all__ = ["Source", "before_and_after", "feeds", "graph", "owner", "published", "seconds_by_owner", "visible"]

SNAPSHOT = "\0snapshot"  # the node under all others; no stage can be called so

Stage = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A stage's rows, or those of one of its splits, as an edge names them."""

    stage: str
    split: str | None = None


def visible(manifest: dict[str, Any]) -> list[Stage]:
    """The stages that the recipe names, in the order in which they ran."""
    return [stage for stage in manifest["stages"] if not stage.get("hidden")]


def owner(name: str) -> str:
    """The visible stage that a hidden one belongs to: `core--random` is `core`'s."""
    return name.split("--", 1)[0]


def seconds_by_owner(manifest: dict[str, Any]) -> dict[str, float]:
    """Seconds of each visible stage, those of its hidden stages included."""
    seconds = {stage["name"]: 0.0 for stage in visible(manifest)}
    for stage in manifest["stages"]:
        name = owner(stage["name"]) if stage.get("hidden") else stage["name"]
        seconds[name] = seconds.get(name, 0.0) + float(stage.get("seconds") or 0)
    return seconds


def feeds(stage: Stage, stages: Mapping[str, Stage]) -> list[Source]:
    """The visible stages that feed one, each split once.

    What a stage's own hidden stages read counts as read by it (the arms of a proof); a twin of
    another stage counts as that stage (a proof's control).
    """
    found: dict[Source, None] = {}
    seen = set()
    waiting = [_source(edge) for edge in (stage.get("inputs") or {}).values()]
    while waiting:
        source = waiting.pop(0)
        if source in seen or source.stage not in stages:
            continue
        seen.add(source)
        if not stages[source.stage].get("hidden"):
            found[source] = None
        elif owner(source.stage) == stage["name"]:
            waiting += [_source(edge) for edge in (stages[source.stage].get("inputs") or {}).values()]
        elif owner(source.stage) in stages:
            found[Source(owner(source.stage), source.split)] = None
    return list(found)


def published(manifest: dict[str, Any]) -> dict[str, Source]:
    """The stage behind each published split: by the manifest, else by its recipe, else the last stage of samples."""
    if manifest.get("published"):
        return {split: _source(edge) for split, edge in manifest["published"].items()}
    names = {stage["name"] for stage in manifest["stages"]}
    recipe = read_yaml((manifest.get("recipe") or {}).get("text") or "").value
    publish = recipe.get("publish") if isinstance(recipe, dict) else None
    splits = publish.get("splits") if isinstance(publish, dict) else None
    if isinstance(splits, dict):
        found = {split: _source(edge) for split, edge in splits.items() if isinstance(edge, str)}
        if found and all(source.stage in names for source in found.values()):
            return found
    samples = [stage["name"] for stage in visible(manifest) if stage.get("gives") == "samples"]
    return {"train": Source(samples[-1])} if samples else {}


def before_and_after(manifest: dict[str, Any]) -> tuple[Source, Source] | None:
    """What could have been trained on, and what is: the proof's raw arm, else the first split upstream, else the first source."""
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    splits = published(manifest)
    if not splits:
        return None
    after = splits.get("train") or next(iter(splits.values()))
    if raw := _raw_arm(manifest, stages):
        return raw, after
    split_edge = None
    at, passed = after, set()
    while at.stage not in passed:
        passed.add(at.stage)
        split_edge = at if at.split else split_edge
        upstream = [source for source in feeds(stages[at.stage], stages) if stages[source.stage].get("gives") == "samples"]
        if not upstream:
            break
        at = upstream[0]
    return split_edge or at, after


def _raw_arm(manifest: dict[str, Any], stages: Mapping[str, Stage]) -> Source | None:
    """What the student of the proof's raw arm read: its model is an input of the proof, made by a hidden stage."""
    inputs = stages.get((manifest.get("proof") or {}).get("stage", ""), {}).get("inputs") or {}
    student = stages.get(inputs["raw.hard"]["stage"], {}) if "raw.hard" in inputs else {}
    edge = (student.get("inputs") or {}).get("samples")
    return _source(edge) if edge and not stages.get(edge["stage"], {"hidden": True}).get("hidden") else None


def graph(manifest: dict[str, Any], surveys: Mapping[str, Survey]) -> tuple[list[Node], list[Edge]]:
    """Boxes and arrows: the visible stages, and the snapshot under them."""
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    hidden = Counter(owner(stage["name"]) for stage in manifest["stages"] if stage.get("hidden"))
    nodes, edges = [], []
    for stage in visible(manifest):
        nodes.append(_node(stage, hidden[stage["name"]]))
        edges += _edges(feeds(stage, stages), stage["name"], surveys)
    splits = published(manifest)
    figure = f"{count(manifest['rows'])} rows" + (f" · {len(manifest['splits'])} splits" if len(manifest.get("splits") or ()) > 1 else "")
    nodes.append(Node(SNAPSHOT, f"{manifest['name']}@{manifest['number']}", "published", figure, "snapshot"))
    edges += _edges(list(splits.values()), SNAPSHOT, surveys)
    return nodes, edges


def _edges(sources: list[Source], stop: str, surveys: Mapping[str, Survey]) -> list[Edge]:
    """One arrow from each stage, however many of its splits flow along it."""
    edges = []
    for stage in dict.fromkeys(source.stage for source in sources):
        splits = [source.split for source in sources if source.stage == stage]
        rows = None
        if stage in surveys:
            rows = surveys[stage].rows if None in splits else sum(surveys[stage].of_split(split) for split in splits)
        edges.append(Edge(stage, stop, ", ".join(split for split in splits if split), rows))
    return edges


def _node(stage: Stage, hidden: int) -> Node:
    gives = stage.get("gives", "samples")
    rows = stage.get("rows") or 0
    if gives == "samples":
        left = {kind: stage["counts"].get(kind) or 0 for kind in ("dropped", "rejected", "merged")} if stage.get("counts") else {}
        gone = [f"{count(number)} {kind}" for kind, number in left.items() if number]
        figure = f"{count(rows)} rows" + (f" · {gone[0]}" if len(gone) == 1 else f" · {count(sum(left.values()))} left" if gone else "")
    else:
        figure = ("1 model" if rows == 1 else f"{count(rows)} models") if gives == "model" else duration(float(stage.get("seconds") or 0))
    return Node(stage["name"], stage["name"], stage["op"], figure, gives, hidden)


def _source(edge: str | dict[str, Any]) -> Source:
    if isinstance(edge, str):
        stage, _, split = edge.partition(".")
        return Source(stage, split or None)
    return Source(edge["stage"], edge.get("split"))
