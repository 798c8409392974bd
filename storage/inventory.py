"""Inventory: what a store's records and manifests say should be there, and who needs what."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from stillroom.errors import StoreError
from stillroom.records import Record, TableRef
from stillroom.stores import Store

__all__ = ["Inventory", "Owner", "take_inventory", "whole_inventory"]


class Owner(NamedTuple):
    """Of a file: size and BLAKE3, the version that it belongs to, the key of that table's leaves, the snapshots that depend on it."""

    facts: list[int | str]
    ref: TableRef
    leaves: str
    snapshots: tuple[str, ...]


@dataclass
class Inventory:
    """Everything that a store wrote down of itself.

    Args:
        keys: size of each object and file of the store, by key.
        records: by fingerprint.
        manifests: by snapshot, such as `digits@3`.
        withdrawn: snapshots whose tables were taken away on purpose; their manifests stay.
        broken: sealed objects that can't be read, with what is wrong, by key.
    """

    keys: dict[str, int]
    records: dict[str, Record] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def standing(self) -> list[str]:
        """The snapshots that have their tables."""
        return [snapshot for snapshot in self.manifests if snapshot not in self.withdrawn]

    def needs(self, fingerprints: Iterable[str]) -> set[str]:
        """These fingerprints, and those of the records whose tables hold heavy values or scores that theirs refer to."""
        found: set[str] = set()
        waiting = list(fingerprints)
        while waiting:
            fingerprint = waiting.pop()
            if fingerprint in found:
                continue
            found.add(fingerprint)
            if record := self.records.get(fingerprint):
                waiting += [origin.rpartition("/")[2] for origin in record.origins]
                waiting += [record.parts["join"]] if "join" in record.parts else []
        return found

    def lineage(self, snapshot: str) -> set[str]:
        """Fingerprints of all records that a snapshot was made of."""
        return self.needs(stage["fingerprint"] for stage in self.manifests[snapshot]["stages"])

    @cached_property
    def _lineages(self) -> dict[str, set[str]]:
        return {snapshot: self.lineage(snapshot) for snapshot in self.standing}

    def snapshots_of(self, fingerprint: str) -> tuple[str, ...]:
        """The snapshots that were made of a record."""
        return tuple(snapshot for snapshot, lineage in self._lineages.items() if fingerprint in lineage)

    def owners(self) -> dict[str, "Owner"]:
        """What was written down of each file, by key."""
        found: dict[str, Owner] = {}
        for fingerprint, record in self.records.items():
            users = self.snapshots_of(fingerprint)
            for key, facts in record.files.items():
                of_removed = record.removed is not None and key.startswith(f"{record.removed.name}.lance/")
                ref = record.removed if of_removed and record.removed else record.table
                found[key] = Owner(facts, ref, "" if of_removed else f"records/{fingerprint}.leaves", users)
        for snapshot in self.standing:
            manifest = self.manifests[snapshot]
            ref = TableRef.published(manifest)
            for key, facts in manifest["files"].items():
                found[key] = Owner(facts, ref, f"published/{ref.fingerprint}.leaves", (snapshot,))
        return found


def take_inventory(store: Store) -> Inventory:
    """Read every record and manifest; what is damaged is noted and left out."""
    inventory = Inventory(store.sizes(""))
    for key in sorted(inventory.keys):
        folder, _, name = key.rpartition("/")
        if not key.endswith(".json") or ".lance/" in key:
            continue
        if folder == "records":
            if (value := _read(store, key, inventory)) is not None:
                record = Record.from_json(value)
                if record.fingerprint == name.removesuffix(".json"):
                    inventory.records[record.fingerprint] = record
                else:
                    inventory.broken[key] = f"is the record of {record.fingerprint[:12]}, not its own"
        elif folder.startswith("snapshots/"):
            if (value := _read(store, key, inventory)) is not None:
                if f"snapshots/{value['name']}/{value['number']}.json" == key:
                    inventory.manifests[f"{value['name']}@{value['number']}"] = value
                else:
                    inventory.broken[key] = f"is the manifest of {value['name']}@{value['number']}, not its own"
        elif folder.startswith("withdrawn/"):
            inventory.withdrawn.add(f"{folder.removeprefix('withdrawn/')}@{name.removesuffix('.json')}")
    return inventory


def whole_inventory(store: Store, so: str) -> Inventory:
    """The same, for those that can't go on where something is damaged: `so` says why.

    Raises:
        StoreError: a record or a manifest is damaged.
    """
    inventory = take_inventory(store)
    for key, problem in inventory.broken.items():
        raise StoreError(f"'{key}'", f"{problem}; {so}", "`stillroom verify` lists all damage; mend it first")
    return inventory


def _read(store: Store, key: str, inventory: Inventory) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] | None = store.read_json(key)
        return value
    except StoreError as error:
        inventory.broken[key] = str(error.args[1])
        return None
