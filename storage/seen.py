"""Seen: what was made with rows that have to be forgotten, holds none of them, and may still tell of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.stores import Store
from storage.inventory import Inventory
from storage.traces import Trace

__all__ = ["Seen", "seen_by"]

Kind = Literal["model", "distilled", "generated", "export"]
TODO: dict[Kind, str] = {
    "model": "the next build trains it without them; `stillroom gc` then removes the old weights; take copies out of use",
    "distilled": "the next build distils without them; `stillroom gc` then removes the old rows; take copies out of use",
    "generated": "the next build generates with the new model; `stillroom gc` then removes the old rows; take copies out of use",
    "export": "delete it, and what was copied from it; export the next snapshot",
}


@dataclass(frozen=True)
class Seen:
    """One thing that was made with the rows.

    Args:
        what: such as `photos@3: teacher`, or where an export is.
        fingerprint: of its record; "" for an export.
        todo: what somebody should do about it.
    """

    kind: Kind
    what: str
    todo: str
    fingerprint: str = ""


def seen_by(store: Store, inventory: Inventory, traces: Sequence[Trace], snapshots: Sequence[str]) -> list[Seen]:
    """What the snapshots' stages, and the exports that were noted, made of the rows that were traced."""
    if not traces:
        return []
    held = {found.place.fingerprint: found.splits for found in traces if found.rows and found.place.fingerprint and _holds_rows(inventory, found)}
    stages: dict[str, Seen] = {}
    for snapshot in reversed(snapshots):
        for seen in _of_stages(snapshot, inventory.manifests[snapshot]["stages"], held):
            stages.setdefault(seen.fingerprint, seen)
    published = {found.place.snapshot: found.splits for found in traces if found.rows and found.place.snapshot}
    return [*stages.values(), *_unpublished(inventory), *_exports(store, inventory, published)]


def _holds_rows(inventory: Inventory, found: Trace) -> bool:
    return found.place.ref.name == inventory.records[found.place.fingerprint].table.name


def _of_stages(snapshot: str, stages: Iterable[Mapping[str, Any]], held: Mapping[str, set[str | None]]) -> list[Seen]:
    """Models that learned from the rows, or from what such a model made; rows that were distilled or generated so."""
    found: dict[str, Seen] = {}
    by_name: dict[str, Mapping[str, Any]] = {}
    for stage in stages:
        by_name[stage["name"]] = stage
        edges = [edge for edge in stage["inputs"].values() if edge["stage"] in by_name]
        directly = any(_carries(held.get(by_name[edge["stage"]]["fingerprint"]), edge["split"]) for edge in edges)
        told = [found[edge["stage"]] for edge in edges if edge["stage"] in found]
        kind = _kind(stage, directly=directly, by_model=any(seen.kind == "model" for seen in told), from_made=bool(told))
        if kind:
            found[stage["name"]] = Seen(kind, f"{snapshot}: {stage['name']}", TODO[kind], stage["fingerprint"])
    hidden = [name for name in found if by_name[name]["hidden"]]
    students = [Seen("model", f"{snapshot}: {len(hidden)} students of its proof", TODO["model"], found[hidden[0]].fingerprint)] if hidden else []
    return [*(seen for name, seen in found.items() if name not in hidden), *students]


def _kind(stage: Mapping[str, Any], *, directly: bool, by_model: bool, from_made: bool) -> Kind | None:
    if stage["gives"] == "model" and (directly or from_made):
        return "model"
    if stage["op"].startswith("distill.") and (directly or from_made):
        return "distilled"
    return "generated" if stage["shape"] == "source" and by_model else None


def _carries(splits: set[str | None] | None, split: str | None) -> bool:
    """Whether a row in one of `splits` comes along an edge; None: the table holds none."""
    return splits is not None and (split is None or split in splits or None in splits)


def _unpublished(inventory: Inventory) -> list[Seen]:
    """Models that no manifest tells of: what they learned from isn't known any more."""
    told = {stage["fingerprint"] for manifest in inventory.manifests.values() for stage in manifest["stages"]}
    models = {fingerprint: record for fingerprint, record in inventory.records.items() if fingerprint not in told and record.operator.startswith("train.")}
    return [
        Seen("model", f"{record.table.name.removeprefix('stages/')}, of no snapshot: it may have learned from them", TODO["model"], fingerprint)
        for fingerprint, record in models.items()
    ]


def _exports(store: Store, inventory: Inventory, published: Mapping[str, set[str | None]]) -> list[Seen]:
    notes = [store.read_json(key) for key in sorted(inventory.keys) if key.startswith("exports/") and key.endswith(".json")]
    held = [note for note in notes if not published.get(note["snapshot"], set()).isdisjoint(note["splits"])]
    return [Seen("export", f"{note['target']} ({note['snapshot']}, {note['as']})", TODO["export"]) for note in held]
