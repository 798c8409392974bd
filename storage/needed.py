"""What a store has to keep: the snapshots that a policy names, what builds that run count on, and what the next builds can take over."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stillroom.errors import InputError, StoreError
from stillroom.format import FORMAT_KEY
from stillroom.snapshots import promoted
from stillroom.stores import Store
from storage.inventory import Inventory

__all__ = ["Needed", "Policy", "choose", "keep_all", "logged_runs", "needed"]

# Objects that are history or too small to matter, and those of parts of stillroom that look after themselves, stay.
SWEPT = ("records/", "latest/", "published/", "work/", "leases/", "beats/")


@dataclass(frozen=True)
class Policy:
    """Which snapshots stay: with neither `keep_last` nor `newer_than` all; else those that one of them keeps, the promoted, and the named.

    Args:
        keep_last: so many of each name; trials are counted apart, so that they push nothing else out.
        newer_than: those made since then; it also says which runs are recent.
        named: such as `digits@1`.
    """

    keep_last: int | None = None
    newer_than: datetime | None = None
    named: frozenset[str] = frozenset()

    @property
    def drops(self) -> bool:
        """Whether any snapshot may go."""
        return self.keep_last is not None or self.newer_than is not None

    def __str__(self) -> str:
        last = [f"the last {self.keep_last}"] if self.keep_last else []
        since = [f"what was made since {self.newer_than:%Y-%m-%d %H:%M}"] if self.newer_than else []
        return ", ".join([*last, *since, "what is promoted", *(["what was named"] if self.named else [])])


@dataclass
class Needed:
    """What stays.

    Args:
        prints: fingerprints whose records and unfinished work stay.
        keys: objects and files.
        tags: names of Lance's tags that stay, by table.
    """

    prints: set[str]
    keys: set[str] = field(default_factory=set)
    tags: dict[str, set[str]] = field(default_factory=dict)


def choose(store: Store, inventory: Inventory, policy: Policy) -> tuple[list[str], list[str]]:
    """The snapshots that stay, and those that go, each by name and number.

    Of the promoted ones, the one that counts stays, and the one that `demote` would bring back.

    Raises:
        InputError: there is no snapshot that was named, or names alone were given, which drop nothing.
    """
    order = sorted(inventory.standing, key=lambda snapshot: (inventory.manifests[snapshot]["name"], inventory.manifests[snapshot]["number"]))
    for snapshot in sorted(policy.named.difference(order)):
        raise InputError(snapshot, "no such snapshot stands", "`stillroom snapshots` lists them")
    if not policy.drops:
        if policy.named:
            raise InputError("--keep", "alone drops nothing: without a policy all snapshots stay", "say --keep-last N or --newer-than T as well")
        return order, []
    kept = set(policy.named)
    for name in {inventory.manifests[snapshot]["name"] for snapshot in order}:
        mine = [snapshot for snapshot in order if inventory.manifests[snapshot]["name"] == name]
        kept.update(_promoted(store, name, mine))
        for trial in (False, True):
            alike = [snapshot for snapshot in mine if inventory.manifests[snapshot]["trial"] == trial]
            kept.update(alike[len(alike) - min(policy.keep_last or 0, len(alike)) :])
    if policy.newer_than is not None:
        kept.update(snapshot for snapshot in order if datetime.fromisoformat(inventory.manifests[snapshot]["created"]) >= policy.newer_than)
    return [snapshot for snapshot in order if snapshot in kept], [snapshot for snapshot in order if snapshot not in kept]


def logged_runs(store: Store, inventory: Inventory) -> list[dict[str, Any]]:
    """Every run of the log, the latest first."""
    keys = sorted((key for key in inventory.keys if key.startswith("runs/")), reverse=True)
    return [run for key in keys if (run := store.read_json(key)) is not None]


def needed(
    store: Store, inventory: Inventory, kept: list[str], dropped: list[str], runs: Iterable[Mapping[str, Any]], live: Iterable[Mapping[str, Any]],
    policy: Policy,
) -> Needed:  # fmt: skip
    """Everything that stays.

    Args:
        kept, dropped: as `choose` says.
        runs: of the log, the latest first.
        live: those that still run.

    Raises:
        StoreError: the record of a stage is missing that a kept snapshot was made of: what else it needs isn't known.
    """
    prints: set[str] = set()
    for snapshot in kept:
        prints |= _lineage(inventory, snapshot)
    for run in [*live, *_recent(inventory, runs, dropped, policy)]:
        prints |= inventory.needs(run["fingerprints"].values())
    if live:  # it may take rows over from any build that is noted as the latest of an operator
        prints |= inventory.needs(fingerprint for named in _latest(store, inventory).values() for fingerprint in named)
    found = Needed(prints)
    keep_all(store, inventory, kept, found)
    found.keys.difference_update(_reports(inventory, dropped))
    _keep_unfinished(store, inventory, found)
    return found


def keep_all(store: Store, inventory: Inventory, kept: list[str], found: Needed) -> None:
    """Let everything stay that these snapshots and `found.prints` name, and objects that name no file."""
    found.keys.update((FORMAT_KEY, *(key for key in inventory.keys if ".lance/" not in key and not key.startswith(SWEPT))))
    found.keys.update(key for key, named in _latest(store, inventory).items() if named <= found.prints)
    _keep_records(inventory, found)
    _keep_published(store, inventory, kept, found)


def _promoted(store: Store, name: str, standing: list[str]) -> list[str]:
    pointer = promoted(store, name) or {"standing": []}
    return [snapshot for number in pointer["standing"] if (snapshot := f"{name}@{number}") in standing][-2:]


def _lineage(inventory: Inventory, snapshot: str) -> set[str]:
    manifest = inventory.manifests[snapshot]
    missing = [stage["name"] for stage in manifest["stages"] if stage["fingerprint"] not in inventory.records]
    if missing and "imported" not in manifest:  # an imported snapshot left its stages behind
        hint = f"bring it back from a copy; `stillroom verify {snapshot}` says what is missing"
        raise StoreError(snapshot, f"the record of its stage '{missing[0]}' is missing, so what it needs isn't known, and nothing is removed", hint)
    return inventory.lineage(snapshot)


def _recent(inventory: Inventory, runs: Iterable[Mapping[str, Any]], dropped: list[str], policy: Policy) -> list[Mapping[str, Any]]:
    """The latest run of each recipe, and its latest trial: the next build of it takes over what they left.

    Not if all that it came to is a snapshot that goes, nor if the policy says that it is too old.
    """
    made = {snapshot: {stage["fingerprint"] for stage in manifest["stages"]} for snapshot, manifest in inventory.manifests.items()}
    gone = [made[snapshot] for snapshot in [*dropped, *inventory.withdrawn] if snapshot in made]
    latest: dict[tuple[str, bool], Mapping[str, Any]] = {}
    for run in runs:
        if run["fingerprints"]:
            latest.setdefault((run["recipe"], "--rows" in shlex.split(run["command"])), run)
    found = []
    for run in latest.values():
        too_old = policy.newer_than is not None and datetime.fromisoformat(run["started"]) < policy.newer_than
        tables = {fingerprint for name, fingerprint in run["fingerprints"].items() if not name.endswith(".scores")}
        if not too_old and not any(stages >= tables for stages in gone):
            found.append(run)
    return found


def _reports(inventory: Inventory, dropped: list[str]) -> set[str]:
    """Reports show pictures; those of snapshots without a table go with it."""
    return {f"snapshots/{snapshot.replace('@', '/')}.html" for snapshot in [*dropped, *inventory.withdrawn]}


def _keep_records(inventory: Inventory, found: Needed) -> None:
    for fingerprint in found.prints & inventory.records.keys():
        record = inventory.records[fingerprint]
        found.keys.update(record.files, (f"records/{fingerprint}.{kind}" for kind in ("json", "leaves", "units")))
        for ref in (record.table, record.removed):
            if ref is not None:
                found.tags.setdefault(ref.name, set()).add(f"f-{fingerprint[:32]}")


def _latest(store: Store, inventory: Inventory) -> dict[str, set[str]]:
    """For each note of the latest build of an operator, the records that it names; a damaged one is of no use, and names none that is there."""
    found = {}
    for key in inventory.keys:
        if key.startswith("latest/"):
            try:
                note = store.read_json(key) or {}
            except StoreError:
                note = {}
            found[key] = {str(part["fingerprint"]) for part in (note or {"fingerprint": ""}, note.get("input")) if part}
    return found


def _keep_published(store: Store, inventory: Inventory, kept: list[str], found: Needed) -> None:
    for snapshot in kept:
        manifest = inventory.manifests[snapshot]
        fingerprint = manifest["table"]["fingerprint"]
        found.keys.update(manifest["files"], (f"published/{fingerprint}.leaves",))
        found.tags.setdefault(manifest["table"]["name"], set()).update((f"v{manifest['number']}", f"f-{fingerprint[:32]}"))
    for key in inventory.keys:
        if key.startswith("published/") and key.endswith(".json"):
            value = store.read_json(key)
            if value and f"{value['name']}@{value['number']}" in kept:
                found.keys.add(key)


def _keep_unfinished(store: Store, inventory: Inventory, found: Needed) -> None:
    """Finished partitions and units of stages that aren't done, and the data files that they left."""
    for key in inventory.keys:
        folder, _, rest = key.partition("/")
        fingerprint, _, name = rest.partition("/")
        if folder != "work" or fingerprint not in found.prints or fingerprint in inventory.records:
            continue
        found.keys.add(key)
        if name.endswith(".json"):
            try:
                value = store.read_json(key) or {}
            except StoreError:
                continue  # the stage's next run says what is wrong with it
            found.keys.update(value.get("files", {}))
