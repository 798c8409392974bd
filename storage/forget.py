"""Forget: rows, and whatever of them stands anywhere in a store, gone for good.

    forgotten/pending/<k>.json       what has to be forgotten, in clear, until it is
    forgotten/<k>.json               the tombstone, by which every later ingest knows the rows
    withdrawn/<name>/<N>.json        the mark of each snapshot that was made of them; its manifest stays
    forgotten/receipts/<k>.json      what was done; it names nobody

That is also the order in which it is done. Every version of a table that holds such a row, speaks of one,
or refers into a table that goes, is taken out whole, as its stage can make it again; so is what lies
about without a record, unfinished work included, since nobody knows what it holds. A crash at any
instant leaves a note under `pending/`, and the next `forget`, of whatever rows, finishes it first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from stillroom.digests import json_digest
from stillroom.errors import StoreError
from stillroom.format import require_format
from stillroom.stores import Store
from storage.alive import holder_words
from storage.inventory import Inventory, whole_inventory
from storage.leases import Lease, lease
from storage.manifests import withdraw
from storage.needed import Needed, keep_all, logged_runs
from storage.runs import live_runs
from storage.seen import Seen, seen_by
from storage.sweep import Removal, Sweep, carry_out, removing
from storage.tombstones import FOLDER, bury, read_tombstones
from storage.traces import Rows, Trace, find_rows, places, redacted, trace, words_about

__all__ = ["Forgotten", "forget"]

PENDING, RECEIPTS = f"{FOLDER}pending/", f"{FOLDER}receipts/"
# Sealed objects that stay, in which a person may have been named.
TOLD = ("snapshots/", "runs/", "promoted/", "withdrawn/", "exports/", "latest/")


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did, or with `dry_run` would do.

    Args:
        receipts: one for what was asked, and one for each earlier `forget` that was finished first; they name nobody.
        snapshots: those that are withdrawn.
        seen: models, generated rows and exports that were made with the rows, with what to do about each.
        dry_run: whether nothing was done.
    """

    receipts: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    dry_run: bool = False


def forget(store: Store, samples: Sequence[str], *, reason: str = "", dry_run: bool = False, waiting: Callable[[str], None] = lambda holder: None) -> Forgotten:
    """Forget rows: by id, the beginning of one, source or picture. Without any, only what a crash interrupted is finished.

    Args:
        reason: for the marks of withdrawn snapshots and the receipt.
        dry_run: only say what would go.
        waiting: told who is waited for, if gc is at work.

    Raises:
        InputError: a word means no row, or several.
        StoreError: a build is at work; or a record or manifest is damaged, so what it names can't be looked through.
    """
    require_format(store)
    if dry_run or not store.exists():
        wanted = _wanted(store, samples, reason)
        return Forgotten([wanted.facts], wanted.facts["snapshots"], wanted.seen, dry_run=True) if wanted else Forgotten(dry_run=True)
    with lease(store, "gc", "forget", waiting=waiting) as held:
        for run in live_runs(store):
            who = holder_words(run.get("holder", {}))
            raise StoreError(store.uri, f"a build of '{run['recipe']}' is at work ({who}), and would write on", "wait until it ends, or stop it")
        done = [_carry_out(store, _Wanted.from_json(store.read_json(key), key), held) for key in store.list(PENDING)]
        if wanted := _wanted(store, samples, reason):
            store.put_json(wanted.key, wanted.as_json())
            done.append(_carry_out(store, wanted, held))
    snapshots = list(dict.fromkeys(snapshot for one in done for snapshot in one.facts["snapshots"]))
    return Forgotten([one.facts for one in done], snapshots, [seen for one in done for seen in one.seen])


@dataclass(frozen=True)
class _Wanted:
    """Rows to forget, and what will be said of them afterwards; written down before anything is done, gone after."""

    key: str
    rows: Rows
    facts: dict[str, Any]
    seen: list[Seen]

    def as_json(self) -> dict[str, Any]:
        rows = {"ids": sorted(self.rows.ids), "sources": sorted(map(list, self.rows.sources)), "contents": sorted(one.hex() for one in self.rows.contents)}
        return {"rows": rows, "facts": self.facts, "seen": [asdict(seen) for seen in self.seen]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], key: str) -> "_Wanted":
        rows = value["rows"]
        sources = {(table, source) for table, source in rows["sources"]}
        return cls(
            key, Rows(set(rows["ids"]), sources, {bytes.fromhex(one) for one in rows["contents"]}), value["facts"], [Seen(**one) for one in value["seen"]]
        )


@dataclass(frozen=True)
class _Touched:
    """What of a store the rows are in: records by fingerprint, snapshots that stand, and what goes, by the step in which it does."""

    inventory: Inventory
    traces: list[Trace]
    prints: set[str]
    snapshots: list[str]
    steps: dict[int, list[Removal]]

    @property
    def removals(self) -> list[Removal]:
        """All that goes."""
        return [removal for _, removals in sorted(self.steps.items()) for removal in removals]


def _wanted(store: Store, samples: Sequence[str], reason: str) -> _Wanted | None:
    """What is asked for, looked up; None where nothing is, or all of it was forgotten before."""
    inventory = whole_inventory(store, "what it names can't be looked through")
    rows = find_rows(store, inventory, samples, read_tombstones(store)) if samples else Rows()
    if not rows.ids:
        return None
    touched = _touched(store, inventory, rows)
    facts = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": redacted(reason, words_about(rows)),
        "rows": len(rows.ids),
        "versions": sum(place.fingerprint in touched.prints or place.snapshot in touched.snapshots for place in places(inventory)),
        "snapshots": touched.snapshots,
        "files": len(touched.removals),
        "bytes": sum(removal.bytes for removal in touched.removals),
    }
    return _Wanted(_next_key(store), rows, facts, seen_by(store, inventory, touched.traces, touched.snapshots))


def _next_key(store: Store) -> str:
    """Where the next note goes; its receipt will have the same number."""
    numbers = [int(key.rpartition("/")[2].removesuffix(".json")) for folder in (PENDING, RECEIPTS) for key in store.list(folder)]
    return f"{PENDING}{max(numbers, default=0) + 1}.json"


def _carry_out(store: Store, wanted: _Wanted, held: Lease | None) -> _Wanted:
    """Do all that has to be done, or what a crash left of it; the receipt comes last, and then the note goes."""
    inventory = whole_inventory(store, "what it names can't be looked through")
    touched = _touched(store, inventory, wanted.rows)
    read_by = {_plain_print(inventory, found.place.fingerprint) for found in touched.traces if found.place.reads}
    number = bury(store, wanted.rows.ids, wanted.rows.sources, wanted.rows.contents, read_by, wanted.facts["at"])
    for snapshot in touched.snapshots:
        _withdraw(store, snapshot, touched, wanted.facts)
    _redact(store, inventory, wanted.rows, touched.removals)
    carry_out(removing(store, touched.steps, busy=False), held, "forget")
    facts = {**wanted.facts, "tombstone": number}
    store.put_json(wanted.key.replace(PENDING, RECEIPTS), facts)
    store.remove(wanted.key)
    return replace(wanted, facts=facts)


def _touched(store: Store, inventory: Inventory, rows: Rows) -> _Touched:
    """Find everything; `rows` learns what belongs to them on the way."""
    traces = trace(store, inventory, rows)
    prints = {found.place.fingerprint for found in traces if found.place.fingerprint} | _speaking_of(inventory, rows)
    size = -1
    while len(prints) > size:
        size = len(prints)
        prints |= {fingerprint for fingerprint in inventory.records if not prints.isdisjoint(_refers_to(inventory, fingerprint))}
    holding = {found.place.snapshot for found in traces}
    snapshots = [snapshot for snapshot in inventory.standing if snapshot in holding or not prints.isdisjoint(inventory.lineage(snapshot))]
    return _Touched(inventory, traces, prints, snapshots, _steps(store, inventory, rows, prints, snapshots))


def _speaking_of(inventory: Inventory, rows: Rows) -> set[str]:
    """Records that name one of the rows, such as in a parameter or among examples."""
    words = words_about(rows)
    told = {fingerprint: [record.parts, record.metrics] for fingerprint, record in inventory.records.items()}
    return {fingerprint for fingerprint, value in told.items() if redacted(value, words) != value}


def _refers_to(inventory: Inventory, fingerprint: str) -> set[str]:
    return inventory.needs([fingerprint]) - {fingerprint}


def _plain_print(inventory: Inventory, fingerprint: str) -> str:
    """The fingerprint that a source would have had before anything was forgotten."""
    parts = inventory.records[fingerprint].parts
    return json_digest({name: value for name, value in parts.items() if name != "forgotten"})


def _steps(store: Store, inventory: Inventory, rows: Rows, prints: set[str], withdrawn: Sequence[str]) -> dict[int, list[Removal]]:
    """All that goes, by the step in which it does: whatever isn't named by a record or a snapshot that stays, and what else speaks of the rows."""
    kept = [snapshot for snapshot in inventory.standing if snapshot not in withdrawn]
    stays = Needed(set(inventory.records) - prints)
    keep_all(store, inventory, kept, stays)
    pages = [key for key in inventory.keys if key.startswith("snapshots/") and key.endswith(".html")]
    stays.keys.difference_update(page for page in pages if _page_of(page) not in kept or _speaks(store, page, rows))
    steps = Sweep(store, inventory, stays, logged_runs(store, inventory), live=[]).steps()
    return steps


def _page_of(key: str) -> str:
    name, _, number = key.removeprefix("snapshots/").removesuffix(".html").rpartition("/")
    return f"{name}@{number}"


def _speaks(store: Store, key: str, rows: Rows) -> bool:
    page = (store.read(key) or b"").decode(errors="replace")
    return redacted(page, words_about(rows)) != page


def _withdraw(store: Store, snapshot: str, touched: _Touched, facts: Mapping[str, Any]) -> None:
    is_in_it = any(found.place.snapshot == snapshot for found in touched.traces)
    what = "a sample of it was forgotten" if is_in_it else "a sample that it was chosen or made from was forgotten"
    recipe = touched.inventory.manifests[snapshot].get("recipe", {}).get("path") or snapshot.partition("@")[0]
    reason = f"{what}: {facts['reason']}" if facts["reason"] else what
    withdraw(store, snapshot, by="forget", reason=reason, at=facts["at"], way_out=f"`stillroom build {recipe}` makes it again without that sample")


def _redact(store: Store, inventory: Inventory, rows: Rows, removals: Sequence[Removal]) -> None:
    """Take ids and sources out of the sealed objects that stay: gates, examples, messages, texts of recipes, marks."""
    words, gone = words_about(rows), {removal.key for removal in removals}
    every = sorted(rows.ids | {source for _, source in rows.sources})
    for key in store.list(""):
        if not key.startswith(TOLD) or not key.endswith(".json") or key in gone:
            continue
        value = store.read_json(key)
        told = redacted(value, words)
        if isinstance(told, dict) and key.startswith("snapshots/"):
            # An example is nothing but ids and sources, so there even a short one is meant.
            told |= {"gates": [{name: redacted(entry, every) if name == "examples" else entry for name, entry in gate.items()} for gate in told["gates"]]}
        if told != value and isinstance(told, dict):
            store.put_json(key, told)
