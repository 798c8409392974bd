"""What goes from a store: everything that isn't needed, table by table and object by object, with the reason."""

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from stillroom.errors import StoreError
from stillroom.records import TableRef
from stillroom.remote import ask
from stillroom.stores import Store
from storage.alive import is_gone, is_here
from storage.commits import version_files
from storage.inventory import Inventory
from storage.leases import Lease
from storage.needed import Needed

__all__ = ["FILES", "LEFT_OVER", "OBJECTS", "TAGS", "VERSIONS", "Removal", "Sweep", "carry_out", "is_staged", "removing"]

# What names files goes before the files.
OBJECTS, TAGS, VERSIONS, FILES = range(4)
# A silent beat or lease of a machine that can't be looked at is cleared away after this.
SILENT = timedelta(hours=1)
# The clock of an object store and that of a build may differ; so much counts as the same time.
MARGIN = timedelta(minutes=5)
# How often a long sweep looks whether it still holds its lease.
CHECK_S = 2.0
# How many deletions an object store is asked for at once.
REQUESTS = 16
LEFT_OVER = "left over"
HINT = "_versions/latest_version_hint.json"
# Lance names the file of version 1 by the first of these numbers, and counts down.
FIRST = (1 << 64) - 2
VERSION = re.compile(r"\.lance/_versions/(\d{20})\.manifest$")
OUR_TAG = re.compile(r"f-[0-9a-f]{32}|v\d+")
STAGED = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Removal:
    """A file or object that goes: its size, and why nobody needs it."""

    key: str
    bytes: int
    why: str


def is_staged(key: str) -> bool:
    """Whether this is what a killed process left of a file that it was writing; no listing of objects shows it."""
    return STAGED.search(key) is not None


class Sweep:
    """Goes through a store and says what isn't needed.

    Args:
        stays: what is.
        runs: of the log.
        live: those that still run; what is younger than the oldest of them is left alone where they may write.
    """

    def __init__(self, store: Store, inventory: Inventory, stays: Needed, runs: Iterable[Mapping[str, Any]], live: Collection[Mapping[str, Any]]) -> None:
        self.store, self.inventory, self.stays, self.runs, self.live = store, inventory, stays, list(runs), live
        self.since = min((datetime.fromisoformat(run["started"]) for run in live), default=datetime.max.replace(tzinfo=UTC)) - MARGIN
        self.modified = _modified(store, "") if live else _modified(store, "beats/")
        # What finished builds left, and which record or snapshot it belonged to: needless whatever its age.
        self.left: dict[str, str] = {}
        for fingerprint, record in inventory.records.items():
            if fingerprint not in stays.prints:
                self.left |= dict.fromkeys(record.files, f"stage {record.table.name.removeprefix('stages/')}")
        for snapshot, manifest in inventory.manifests.items():
            self.left |= dict.fromkeys(manifest["files"], f"snapshot {snapshot}")

    def steps(self) -> dict[int, list[Removal]]:
        """All that goes, by the step in which it does."""
        found: dict[int, list[Removal]] = {OBJECTS: [*self.records(), *self.objects()], TAGS: [], VERSIONS: [], FILES: self.staged()}
        for step, removal in self.tables():
            found[step].append(removal)
        return found

    def records(self) -> list[Removal]:
        """Records, each before those whose tables hold what its own refers to; then what lies beside them."""
        gone = [fingerprint for fingerprint in self.inventory.records if fingerprint not in self.stays.prints]
        gone.sort(key=lambda fingerprint: -len(self.inventory.needs([fingerprint])))
        why = {fingerprint: f"stage {self.inventory.records[fingerprint].table.name.removeprefix('stages/')}" for fingerprint in gone}
        beside = [key for key in self.inventory.keys if key.startswith("records/") and not key.endswith(".json") and key not in self.stays.keys]
        return [
            *(self._removal(f"records/{fingerprint}.json", why[fingerprint]) for fingerprint in gone),
            *(self._removal(key, why.get(key[8:].partition(".")[0], LEFT_OVER)) for key in beside if not self._may_be_written(key)),
        ]

    def objects(self) -> list[Removal]:
        """Small objects: of dropped snapshots, unfinished work that nobody goes on with, leases and beats of the dead."""
        found = []
        for key in self.inventory.keys:
            folder, _, rest = key.partition("/")
            if key in self.stays.keys or ".lance/" in key or folder == "records":
                continue
            if folder in ("published", "snapshots") and not self._may_be_written(key):
                found.append(self._removal(key, "snapshots that go"))
            elif folder == "latest" and not self._may_be_written(key):
                found.append(self._removal(key, LEFT_OVER))
            elif folder == "work" and not self._is_live_work(rest.partition("/")[0]) and not self._may_be_written(key):
                found.append(self._removal(key, "unfinished work"))
        return [*found, *self._dead()]

    def tables(self) -> Iterator[tuple[int, Removal]]:
        """What goes of every table, with the step in which it goes."""
        tables: dict[str, list[str]] = {}
        for key in self.inventory.keys:
            table, inside, _ = key.partition(".lance/")
            if inside:
                tables.setdefault(table, []).append(key)
        ours = {manifest["name"] for manifest in self.inventory.manifests.values()} | {run["recipe"] for run in self.runs}
        for table, keys in tables.items():
            if table.startswith("stages/") or table in ours:
                yield from self._table(table, keys)

    def staged(self) -> list[Removal]:
        """What killed processes left of files that they were writing."""
        found = []
        for folder, _, names in os.walk(self.store.local or ""):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):
                    facts = os.stat(path)
                    if is_staged(name) and not (self.live and datetime.fromtimestamp(facts.st_mtime, UTC) >= self.since):
                        found.append(Removal(os.path.relpath(path, self.store.local), facts.st_size, LEFT_OVER))
        return found

    def _table(self, table: str, keys: list[str]) -> Iterator[tuple[int, Removal]]:
        live = any(table == run["recipe"] or table.startswith(f"stages/{run['recipe']}.") for run in self.live)
        stays = {key for key in keys if key in self.stays.keys}
        if live:
            stays |= {key for key in keys if key not in self.left and self._may_be_written(key)} | self._base(table, keys)
        if stays:
            stays |= {f"{table}.lance/{HINT}"} | self._tags(table, keys, stays)
        for key in keys:
            if key not in stays:
                path = key.partition(".lance/")[2]
                # The hint goes with the versions: Lance takes one to no version for a lie and looks itself.
                step = TAGS if path.startswith("_refs/") else VERSIONS if path.startswith("_versions/") else FILES
                yield step, self._removal(key, self.left.get(key, "a tag" if step == TAGS else LEFT_OVER))

    def _base(self, table: str, keys: list[str]) -> set[str]:
        """What a build needs of a table that it writes: the first version, and the newest, on which it commits next."""
        versions = [int(found[1]) for key in keys if (found := VERSION.search(key))]
        if not versions:
            return set(keys)
        first = {key for key in keys if key.startswith(f"{table}.lance/_transactions/0-")} | {f"{table}.lance/_versions/{FIRST}.manifest"}
        try:
            return first | set(version_files(self.store, TableRef(table, FIRST + 1 - min(versions), 0, "")))
        except (OSError, ValueError):
            return set(keys)  # it changes just now: the next gc looks again

    def _tags(self, table: str, keys: list[str], stays: set[str]) -> set[str]:
        """Our tags of what stays, and anybody's of a version that stays."""
        versions = {FIRST + 1 - int(found[1]) for key in stays if (found := VERSION.search(key))}
        found_tags = set()
        for key in keys:
            before, is_tag, name = key.partition(f"{table}.lance/_refs/tags/")
            if is_tag and not before:
                name = name.removesuffix(".json")
                mine = name in self.stays.tags.get(table, ())
                if mine or (not OUR_TAG.fullmatch(name) and _tagged(self.store, key) in versions):
                    found_tags.add(key)
        return found_tags

    def _dead(self) -> list[Removal]:
        """Leases and beats of processes that ended; while a build runs, only what is silent for long."""
        now = datetime.now(UTC)
        silent = {key for key, when in self.modified.items() if key.startswith("beats/") and now - when > SILENT}
        ended = [run for run in self.runs if run["state"] == "Running" and run["id"] not in {live["id"] for live in self.live}]
        beats = silent | {str(run.get("beat")) for run in ended}
        leases = []
        for key in self.inventory.keys:
            if key.startswith("leases/") and not key.startswith("leases/gc.") and not self.live:
                try:
                    found = self.store.read_json(key) or {}
                except StoreError:
                    found = {}
                holder, beat = found.get("holder", {}), str(found.get("beat", ""))
                if is_gone(holder) or (not is_here(holder) and (beat in beats or beat not in self.inventory.keys)):
                    leases.append(key)
                    beats.add(beat)
        return [self._removal(key, "dead builds") for key in [*leases, *sorted(beats & self.inventory.keys.keys())]]

    def _is_live_work(self, fingerprint: str) -> bool:
        return any(fingerprint in run["fingerprints"].values() for run in self.live)

    def _may_be_written(self, key: str) -> bool:
        """Whether a build that runs may have written it."""
        return bool(self.live) and self.modified.get(key, datetime.now(UTC)) >= self.since

    def _removal(self, key: str, why: str) -> Removal:
        return Removal(key, self.inventory.keys[key], why)


def removing(store: Store, steps: Mapping[int, list[Removal]], *, busy: bool) -> Iterator[Callable[[], None]]:
    """What has to be done to remove it all, in an order in which it may stop anywhere.

    Args:
        steps: as `Sweep.steps` gives them.
        busy: whether a build may be making folders; else empty ones go too.
    """
    for _, removals in sorted(steps.items()):
        # Records go one by one, each before those that it refers to.
        records = [removal.key for removal in removals if removal.key.startswith("records/")]
        others = [removal.key for removal in removals if not removal.key.startswith("records/")]
        size = 1 if store.local else REQUESTS
        for keys in [*([key] for key in records), *(others[at : at + size] for at in range(0, len(others), size))]:
            yield partial(_remove, store, keys)
    if store.local and not busy:
        yield partial(_remove_empty, store)


def carry_out(steps: Iterable[Callable[[], None]], held: Lease | None, who: str) -> None:
    """Do what has to be done, as long as the lease for it is held.

    Raises:
        StoreError: another process took over.
    """
    checked = time.monotonic()
    for step in steps:
        if time.monotonic() - checked > CHECK_S:
            if held is None or not held.is_held():
                raise StoreError(who, "was silent for so long that another process took over, and ends here", "run it again: it finishes what is left")
            checked = time.monotonic()
        step()


def _remove(store: Store, keys: Sequence[str]) -> None:
    def remove(key: str) -> None:
        if store.local and is_staged(key):
            (store.local / key).unlink(missing_ok=True)
        else:
            store.remove(key)

    if len(keys) == 1:
        remove(keys[0])
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(remove, keys))


def _remove_empty(store: Store) -> None:
    """Folders with nothing in them; an object store has none."""
    assert store.local is not None
    for folder, _, _ in os.walk(store.local, topdown=False):
        if folder != str(store.local):
            with suppress(OSError):  # there is something in it
                os.rmdir(folder)


def _modified(store: Store, prefix: str) -> dict[str, datetime]:
    """When each object was last written, by the store's clock."""
    if store.local and not store.local.is_dir():
        return {}
    listed = ask(store.uri, lambda: [entry for chunk in store.objects.list(prefix.rstrip("/") or None) for entry in chunk])
    return {entry["path"]: entry["last_modified"].astimezone(UTC) for entry in listed}


def _tagged(store: Store, key: str) -> int | None:
    """The version that a tag pins; None where it can't be read."""
    try:
        found = json.loads(store.read(key) or b"{}")
    except ValueError:
        return None
    return found.get("version") if isinstance(found, dict) else None
