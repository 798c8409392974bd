"""Verify: every byte of a store, or of what one snapshot needs, against what was written down when it was made.

Files are hashed as they lie; where one has other bytes its columns are read to name those that a
reader would find changed. What nobody wrote down is foreign, or left over by a build that died.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from stillroom.digests import column_roots, json_digest
from stillroom.errors import InputError, StoreError
from stillroom.format import FORMAT_KEY, require_format
from stillroom.integrity import changed_bytes
from stillroom.records import TableRef
from stillroom.sealed import is_whole_text
from stillroom.snapshots import NUMBER
from stillroom.stores import Store
from storage.commits import OURS
from storage.inventory import Inventory, Owner, take_inventory
from storage.places import damaged_columns, fragment_of

__all__ = ["Finding", "Report", "verify"]

Kind = Literal["damaged", "missing", "foreign", "left over"]
# What builds leave here no reader of a snapshot looks at.
UNFINISHED = ("work/", "leases/", "beats/")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
SEALED = ("records/", "snapshots/", "published/", "promoted/", "withdrawn/", "forgotten/", "latest/", "runs/", "exports/")


@dataclass(frozen=True)
class Finding:
    """One thing that isn't as it was written.

    Args:
        key: the file, as the store names it.
        kind: damaged or missing (a fault), foreign (nobody wrote it down), or left over (of a build that died; gc takes it).
        problem: what is wrong, in a few words.
        table, fragment, columns: where, as far as it is known.
        snapshots: those that depend on it.
    """

    key: str
    kind: Kind
    problem: str
    table: str = ""
    fragment: int | None = None
    columns: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Whether a reader may get something else than was written."""
        return self.kind in ("damaged", "missing", "foreign")


@dataclass(frozen=True)
class Report:
    """What `verify` saw: how many files and bytes, and what is wrong."""

    files: int
    bytes: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no fault was found."""
        return not any(finding.is_fault for finding in self.findings)


def verify(store: Store, snapshot: str | None = None, *, narrow: bool = True) -> Report:
    """Compare every byte with what was written down.

    Args:
        store: where.
        snapshot: look only at what this one needs, such as `digits@3`: its table, and the stages it was made of.
        narrow: read the columns of damaged files to name those that changed.

    Raises:
        InputError: there is no such snapshot.
        StoreError: the store has another format.
    """
    require_format(store)
    inventory = take_inventory(store)
    if snapshot is not None and snapshot not in inventory.manifests and f"snapshots/{snapshot.replace('@', '/')}.json" not in inventory.broken:
        raise InputError(snapshot, "no such snapshot", "`stillroom snapshots` lists them")
    owners = inventory.owners()
    looked_at = {key: owner for key, owner in owners.items() if snapshot is None or snapshot in owner.snapshots}
    found = [
        *_objects(store, inventory),
        *_pointers(store, inventory),
        *_files(store, looked_at, narrow=narrow),
        *_tags(store, inventory),
        *(_unknown(store, inventory, owners) if snapshot is None else []),
    ]
    if snapshot is not None:
        found = [finding for finding in found if snapshot in finding.snapshots]
    size = sum(int(owner.facts[0]) for owner in looked_at.values())
    return Report(len(looked_at), size, sorted(found, key=lambda finding: (not finding.is_fault, finding.key)))


def _objects(store: Store, inventory: Inventory) -> list[Finding]:
    """Records, leaves, manifests and reports: each whole, each what its key says, each where another needs it."""
    found = [Finding(key, "damaged", problem, snapshots=_named_in(inventory, key)) for key, problem in inventory.broken.items()]
    for fingerprint, record in inventory.records.items():
        if fingerprint not in (json_digest(record.parts), json_digest({"scores": record.parts})):
            problem = "isn't what its fingerprint was made of"
            found.append(Finding(f"records/{fingerprint}.json", "damaged", problem, record.table.name, snapshots=inventory.snapshots_of(fingerprint)))
        found += _leaves(store, f"records/{fingerprint}.leaves", record.columns, record.table.name, inventory.snapshots_of(fingerprint))
    for snapshot in inventory.standing:
        manifest = inventory.manifests[snapshot]
        found += _leaves(store, f"published/{manifest['table']['fingerprint']}.leaves", manifest["table"]["columns"], manifest["name"], (snapshot,))
        page = f"snapshots/{snapshot.replace('@', '/')}.html"
        raw = store.read(page)
        if raw is None and "imported" not in manifest and f"published/{manifest['table']['fingerprint']}.json" not in inventory.keys:
            found.append(Finding(page, "left over", "the build ended before the report; `stillroom build` writes it", snapshots=(snapshot,)))
        elif raw is None or not is_whole_text(raw):
            found.append(
                Finding(page, "missing" if raw is None else "damaged", "the report; `stillroom build` writes a missing one again", snapshots=(snapshot,))
            )
        for stage in manifest["stages"]:
            key = f"records/{stage['fingerprint']}.json"
            if key not in inventory.keys and "imported" not in manifest:  # what was imported left its stages behind
                found.append(Finding(key, "missing", f"the record of stage '{stage['name']}'", snapshots=(snapshot,)))
    return found


def _leaves(store: Store, key: str, columns: dict[str, str], table: str, snapshots: tuple[str, ...]) -> list[Finding]:
    try:
        value = store.read_json(key)
    except StoreError as error:
        return [Finding(key, "damaged", str(error.args[1]), table, snapshots=snapshots)]
    if value is None:
        return [Finding(key, "missing", "digests of the table's blocks", table, snapshots=snapshots)]
    whole = column_roots(value["leaves"]) == columns
    return [] if whole else [Finding(key, "damaged", "doesn't lead to the digests of the columns", table, snapshots=snapshots)]


def _pointers(store: Store, inventory: Inventory) -> list[Finding]:
    """Promotions, names of publications, the log, notes for the next build: each whole and each to something that is there."""
    found = []
    last: dict[str, int] = {}
    for key in sorted(inventory.keys):
        folder, _, rest = key.partition("/")
        is_one = folder in ("promoted", "published", "runs", "withdrawn", "forgotten", "exports", "latest") and key.endswith(".json")
        if not is_one and key != FORMAT_KEY and not (folder == "records" and key.endswith(".units")):
            continue
        try:
            value = store.read_json(key) or {}
        except StoreError as error:
            found.append(Finding(key, "damaged", str(error.args[1]), snapshots=_named_in(inventory, key)))
            continue
        if folder == "promoted":
            name, _, number = rest.removesuffix(".json").rpartition("/")
            if not re.fullmatch(NUMBER, number):
                found.append(Finding(key, "foreign", "no file of stillroom's"))
                continue
            last[name] = max(last.get(name, 0), int(number))
            if (value["name"], value["k"]) != (name, int(number)):
                found.append(Finding(key, "damaged", f"is pointer {value['k']} of {value['name']}, not its own"))
        if folder in ("promoted", "published") and value["number"] is not None and f"{value['name']}@{value['number']}" not in inventory.manifests:
            found.append(Finding(key, "missing", f"points to {value['name']}@{value['number']}, whose manifest isn't there"))
    for name, newest in last.items():
        keys = [f"promoted/{name}/{k}.json" for k in range(1, newest)]
        found += [Finding(key, "missing", "a promotion") for key in keys if key not in inventory.keys]
    return found


def _files(store: Store, owners: Mapping[str, Owner], *, narrow: bool) -> list[Finding]:
    """Data files, Lance's manifests and transactions: every byte."""
    found = []
    for key, problem in changed_bytes(store, {key: owner.facts for key, owner in owners.items()}).items():
        _, ref, leaves_key, snapshots = owners[key]
        fragment = fragment_of(store, ref, key) if "/data/" in key else None
        columns: tuple[str, ...] = ()
        if narrow and fragment and leaves_key and problem != "is missing":
            leaves = (store.read_json(leaves_key) or {"leaves": {}})["leaves"]
            columns = damaged_columns(store, ref, leaves, fragment[1:])
        kind: Kind = "missing" if problem == "is missing" else "damaged"
        found.append(Finding(key, kind, problem, ref.name, fragment[0] if fragment else None, columns, snapshots))
    return found


def _tags(store: Store, inventory: Inventory) -> list[Finding]:
    """The tags that pin versions for Lance's own readers and clean-up."""
    wanted = {}
    for fingerprint, record in inventory.records.items():
        for ref in (record.table, record.removed):
            if ref is not None:
                wanted[f"{ref.name}.lance/_refs/tags/f-{fingerprint[:32]}.json"] = (ref, inventory.snapshots_of(fingerprint))
    for snapshot in inventory.standing:
        manifest = inventory.manifests[snapshot]
        ref = TableRef.published(manifest)
        for tag in (f"v{manifest['number']}", f"f-{ref.fingerprint[:32]}"):
            wanted[f"{ref.name}.lance/_refs/tags/{tag}.json"] = (ref, (snapshot,))
    found = []
    for key, (ref, snapshots) in wanted.items():
        raw = store.read(key)
        if raw is None:
            found.append(Finding(key, "missing", "a tag; the next build sets it again", ref.name, snapshots=snapshots))
        elif not _is_tag_of(raw, ref.version, inventory.keys.get(f"{ref.name}.lance/_versions/{(1 << 64) - 1 - ref.version}.manifest")):
            found.append(Finding(key, "damaged", f"a tag that doesn't say what a tag of version {ref.version} says", ref.name, snapshots=snapshots))
    return found


def _is_tag_of(raw: bytes, version: int, manifest_bytes: int | None) -> bool:
    """Whether Lance reads this as a tag of that version: by another size of its manifest, or a member that it doesn't know, it fails."""
    try:
        value = json.loads(raw)
        times = [value.pop(name) for name in ("createdAt", "updatedAt")]
        # Python takes more for a time than Lance does.
        if not all(TIME.fullmatch(time) and datetime.fromisoformat(time) for time in times):
            return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    told: dict[str, object] = {"branch": None, "version": version, "manifestSize": manifest_bytes, "metadata": {}}
    return bool(value == told)


def _unknown(store: Store, inventory: Inventory, known: Collection[str]) -> list[Finding]:
    """What lies in the store and was written down nowhere: left over by builds that died, or foreign."""
    found = []
    for key in inventory.keys:
        if key in known or key == FORMAT_KEY or key.startswith((*UNFINISHED, *SEALED)):
            continue
        table, inside, path = key.partition(".lance/")
        if not inside:
            found.append(Finding(key, "foreign", "no file of stillroom's"))
        elif path.startswith("_refs/tags/") or path == "_versions/latest_version_hint.json":
            continue  # no reader goes by them alone, and `_tags` has looked at those that count
        elif path.startswith("_versions/"):
            found.append(Finding(key, "left over" if _is_ours(store, key) else "foreign", "a version that no record names", table))
        elif path.startswith(("data/", "_transactions/", "_deletions/", "_indices/")):
            found.append(Finding(key, "left over", "a file of no version that a record names", table))
        else:
            found.append(Finding(key, "foreign", "no file of stillroom's", table))
    return found


def _is_ours(store: Store, key: str) -> bool:
    """Whether a build committed a version."""
    import lance

    table, _, file = key.partition(".lance/_versions/")
    version = (1 << 64) - 1 - int(file.removesuffix(".manifest"))
    try:
        transaction = lance.dataset(store.table_uri(table), version=version).read_transaction(version)
    except (OSError, ValueError):
        return False
    return transaction is not None and OURS in (transaction.transaction_properties or {})


def _named_in(inventory: Inventory, key: str) -> tuple[str, ...]:
    """The snapshots that a broken object belongs to, by its name."""
    folder, _, name = key.removesuffix(".json").rpartition("/")
    if folder == "records":
        return tuple(snapshot for snapshot, manifest in inventory.manifests.items() if any(stage["fingerprint"] == name for stage in manifest["stages"]))
    return (f"{folder.removeprefix('snapshots/')}@{name}",) if folder.startswith("snapshots/") else ()
