"""Why two snapshots differ, from their manifests and the records of their stages: stages, parameters, packages, seed, proof."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.judged import main_lines
from flows.report.lineage import feeds, published, visible
from stillroom.records import read_record
from stillroom.snapshots import Snapshot

__all__ = ["Arm", "Change", "Changes", "StageChange", "changes", "contents_of"]

# added, removed: one recipe has it. changed: it is written otherwise. data: it reads other files.
# follows: only what it is made from differs. renamed: the same under another name.
Status = Literal["same", "renamed", "changed", "data", "follows", "added", "removed"]

Manifest = Mapping[str, Any]
Contents = Mapping[str, Mapping[str, str]]
_NOTHING = object()


@dataclass(frozen=True)
class Change:
    """A value that differs; None where one of the two has none."""

    what: str
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class StageChange:
    """A stage in both recipes, or in one: how it stands, what is written otherwise, and its rows.

    `data` names the parameters whose file or folder holds something else, where the store's records tell.
    """

    stage: str
    op: str
    status: Status
    differences: list[Change] = field(default_factory=list)
    rows_before: int | None = None
    rows_after: int | None = None
    same_rows: bool = False
    data: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arm:
    """An arm that both proofs have, or a judged set, or what stands in its place: accuracy with its 95 % interval."""

    arm: str
    before: float
    before_low: float
    before_high: float
    after: float
    after_low: float
    after_high: float


@dataclass(frozen=True)
class Changes:
    """What differs in how two snapshots were made.

    `stages` has all of both in the order of the later recipe, `settings` seed, overrides, splits and
    trial, `packages` versions, `machine` what they ran on, `proof` the arms and judged sets that both have.
    """

    stages: list[StageChange]
    settings: list[Change]
    packages: list[Change]
    machine: list[Change]
    proof: list[Arm]

    @property
    def causes(self) -> list[StageChange]:
        """The stages that differ by themselves: all other differences follow from them."""
        return [stage for stage in self.stages if stage.status in ("changed", "data", "added", "removed")]


def changes(before: Manifest, after: Manifest, contents: tuple[Contents, Contents] = ({}, {})) -> Changes:
    """Compare how two snapshots were made.

    Args:
        contents: for both, by stage: the digests of what its path parameters read (see `contents_of`).
    """
    environments = [manifest.get("environment") or {} for manifest in (before, after)]
    machines = [{name: value for name, value in environment.items() if name != "packages"} for environment in environments]
    return Changes(
        _stages(before, after, contents),
        _differing(_settings(before), _settings(after)),
        _differing(*(environment.get("packages") or {} for environment in environments)),
        _differing(*machines),
        _arms(before, after),
    )


def contents_of(snapshot: Snapshot) -> Contents:
    """What each stage read from outside the store, from the records that are still there."""
    found = {}
    for stage in snapshot.manifest["stages"]:
        if record := read_record(snapshot.store, stage["fingerprint"]):
            params = (record.parts.get("scores") or record.parts).get("params") or {}
            found[stage["name"]] = {name: value["digest"] for name, value in params.items() if isinstance(value, dict) and set(value) == {"digest"}}
    return found


def _stages(before: Manifest, after: Manifest, contents: tuple[Contents, Contents]) -> list[StageChange]:
    sides = [{stage["name"]: stage for stage in visible(dict(manifest))} for manifest in (before, after)]
    everything = [{stage["name"]: stage for stage in manifest["stages"]} for manifest in (before, after)]
    renamed = _renamed(*sides)
    found: dict[str, StageChange] = {}
    for name, stage in sides[1].items():
        old = renamed.get(name, name)
        earlier = sides[0].get(old)
        if earlier is None:
            found[name] = StageChange(name, stage["op"], "added", rows_after=stage["rows"])
            continue
        differences = _differing(_definition(earlier, everything[0], renamed), _definition(stage, everything[1], {}))
        if old != name:
            differences.insert(0, Change("name", old, name))
        data = [change.what for change in _differing(contents[0].get(old, {}), contents[1].get(name, {})) if change.before and change.after]
        status: Status = "data" if data and not differences else _status(earlier, stage, differences, everything)
        found[name] = StageChange(
            name, stage["op"], status, differences, earlier["rows"], stage["rows"],
            bool(stage.get("digest")) and stage.get("digest") == earlier.get("digest"), data,
        )  # fmt: skip
    gone = [stage for name, stage in sides[0].items() if name not in found and name not in renamed.values()]
    return [*found.values(), *(StageChange(stage["name"], stage["op"], "removed", rows_before=stage["rows"]) for stage in gone)]


def _renamed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """The earlier name of each stage that is the same under another one: names aren't part of fingerprints."""
    free = {stage["fingerprint"]: name for name, stage in before.items() if name not in after and stage.get("fingerprint")}
    return {name: free[stage["fingerprint"]] for name, stage in after.items() if name not in before and stage.get("fingerprint") in free}


def _definition(stage: Mapping[str, Any], stages: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """What the recipe says of a stage, flat; edges by the names of the later recipe."""
    later = {old: new for new, old in renamed.items()}
    edges = {}
    for name, edge in (stage.get("inputs") or {}).items():
        if not stages.get(edge["stage"], {}).get("hidden"):
            edges[f"from.{name}"] = later.get(edge["stage"], edge["stage"]) + (f".{edge['split']}" if edge.get("split") else "")
    if len(edges) < len(stage.get("inputs") or {}):
        # The arms of a proof are hidden stages: what feeds them is what the recipe says.
        edges |= {"reads": ", ".join(sorted(later.get(one.stage, one.stage) + (f".{one.split}" if one.split else "") for one in feeds(dict(stage), stages)))}
    return {"op": stage["op"], "version": stage["version"], **_flat(stage.get("params") or {}), **edges, "seed": stage.get("seed")}


def _status(before: Mapping[str, Any], after: Mapping[str, Any], differences: list[Change], stages: list[dict[str, Any]]) -> Status:
    if before.get("fingerprint") == after.get("fingerprint"):
        return "renamed" if differences and differences[0].what == "name" else "same"
    if differences:
        return "changed"
    inputs = [
        [stages[side].get(edge["stage"], {}).get("fingerprint") for edge in (stage.get("inputs") or {}).values()] for side, stage in enumerate((before, after))
    ]
    return "data" if inputs[0] == inputs[1] else "follows"


def _settings(manifest: Manifest) -> dict[str, Any]:
    recipe = manifest.get("recipe") or {}
    splits = {f"publish.{split}": source.stage + (f".{source.split}" if source.split else "") for split, source in published(dict(manifest)).items()}
    return {"seed": manifest.get("seed"), "--set": ", ".join(recipe.get("overrides") or ()) or None, **splits, "trial": bool(manifest.get("trial"))}


def _arms(before: Manifest, after: Manifest) -> list[Arm]:
    sides = [_accuracies(manifest) for manifest in (before, after)]
    return [Arm(name, *(sides[side][name][key] for side in (0, 1) for key in ("accuracy", "low", "high"))) for name in sides[1] if name in sides[0]]


def _accuracies(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """The arms of the proof by name, and of each judged set the set itself and what stands in its place."""
    found = {arm["arm"]: arm for arm in (manifest.get("proof") or {}).get("arms") or ()}
    for line in main_lines(manifest.get("judged")):
        found |= {line.title: line.candidate, **{f"{line.title}: {arm}": rival for arm, rival in line.rivals.items()}}
    return found


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    names = dict.fromkeys([*before, *after])
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name, _NOTHING) != after.get(name, _NOTHING)]


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parameters by their dotted names, as `--set` takes them."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat
