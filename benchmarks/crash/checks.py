"""What must hold in a store after a crash, and what a finished build left, in a form that two stores can be compared by."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lance
import lancedb
import pyarrow as pa

import stillroom
from flows.report.render import render
from stillroom.digests import TableDigest
from stillroom.fields import light_names
from stillroom.records import Record, TableRef, read_record
from stillroom.sealed import seal_text
from stillroom.snapshots import list_snapshots, promoted
from stillroom.stored import StoredTable, open_table
from stillroom.stores import Store

__all__ = ["ahead", "facts", "finished", "hangs_over", "look", "manifests", "records"]

# What may differ between two equal builds: times, and which files hold a table.
BLANK: dict[str, Any] = {"created": "", "at": "", "seconds": 0, "bytes": 0, "files": {}}


def look(store: Store) -> list[str]:
    """What is wrong with what a reader could see now; empty where all is well."""
    wrong: list[str] = []

    def holds(what: str, check: Callable[[], str | None]) -> None:
        try:
            problem = check()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            wrong.append(f"{what}: {' '.join(problem.split())[:300]}")

    for record in records(store):
        holds(f"record of stage {record.stage}", lambda ref=record.table: _whole(store, ref))
        if record.removed:
            holds(f"removed rows of stage {record.stage}", lambda ref=record.removed: _whole(store, ref, digest=False))
    known = list_snapshots(store)
    for line in known:
        ref = f"{line['name']}@{line['number']}"
        holds(f"snapshot {ref}", lambda ref=ref: _opens(store, ref))
    for name in {line["name"] for line in known}:
        holds(f"promotion of {name}", lambda name=name: _points_somewhere(store, name))
    for key in _published(store):
        holds(key, lambda key=key: _names_a_snapshot(store, key))
    return wrong


def ahead(store: Store) -> list[str]:
    """Published names under which LanceDB, asked for no version, opens one that isn't published.

    That is so from the commit of a snapshot's table to its manifest, so a kill between the two leaves it
    until the next build. The version must be whole, as any other.
    """
    found = []
    for name in {manifest["name"] for manifest in manifests(store)}:
        table = lancedb.connect(store.uri).open_table(name)
        if table.version not in [manifest["table"]["version"] for manifest in manifests(store) if manifest["name"] == name]:
            assert table.to_arrow().num_rows == table.count_rows()
            found.append(f"{name} version {table.version}")
    return found


def records(store: Store) -> list[Record]:
    """All records of a store."""
    keys = [key.removeprefix("records/").removesuffix(".json") for key in store.list("records/") if key.endswith(".json")]
    return [record for key in keys if (record := read_record(store, key))]


def finished(store: Store) -> set[str]:
    """Fingerprints of what has a record."""
    return {record.fingerprint for record in records(store)}


def manifests(store: Store) -> list[dict[str, Any]]:
    """The manifests of all snapshots, by key."""
    return [store.read_json(key) for key in store.list("snapshots/") if key.endswith(".json")]


def facts(store: Store) -> dict[str, Any]:
    """All that a finished build left and a reader may look at, by name; equal for equal builds."""
    found: dict[str, Any] = {}
    for record in records(store):
        name = f"{record.stage} {record.fingerprint[:8]}"
        found[f"record {name}"] = _blank(record.as_json())
        found[f"rows {name}"] = _digest(store, record.table)
        found[f"removed {name}"] = _digest(store, record.removed) if record.removed else None
    for manifest in manifests(store):
        name, number = manifest["name"], manifest["number"]
        page = store.read(f"snapshots/{name}/{number}.html")
        tag = lance.dataset(store.table_uri(name)).tags.list().get(f"v{number}")
        found[f"manifest {name}@{number}"] = _blank(manifest)
        found[f"rows {name}@{number}"] = _digest(store, _table_of(manifest))
        # Times stand all over a report. So: it is what its manifest gives, and that gives the same with the times blank.
        found[f"report {name}@{number} fits its manifest"] = page == seal_text(_report(store, manifest))
        found[f"report {name}@{number}"] = _report(store, _blank(manifest))
        found[f"tag of {name}@{number} is right"] = tag is not None and tag["version"] == manifest["table"]["version"]
    for key in [*_published(store), *store.list("promoted/"), *store.list("latest/")]:
        found[key] = _blank(store.read_json(key))
    return found


def hangs_over(store: Store) -> dict[str, int]:
    """What nobody refers to: unfinished work, and versions without a record or a manifest. For `gc`, and no fault."""
    refs = [ref for record in records(store) for ref in (record.table, record.removed) if ref]
    refs += [_table_of(manifest) for manifest in manifests(store)]
    referred = {(ref.name, ref.version) for ref in refs}
    # The first version of a table is made empty, for others to commit on.
    versions = [(name, version["version"]) for name in {ref.name for ref in refs} for version in lance.dataset(store.table_uri(name)).versions()]
    return {"objects in work/": len(store.list("work/")), "versions": len([one for one in versions if one[1] > 1 and one not in referred])}


def _whole(store: Store, ref: TableRef, *, digest: bool = True) -> str | None:
    # Of what is there: a reference may be wrong.
    table = StoredTable(store, replace(ref, rows=-1))
    rows = sum(batch.num_rows for batch in table.scan(table.schema.names, batch_size=1024))
    if rows != ref.rows:
        return f"{rows} rows, {ref.rows} expected"
    if digest and _digest(store, ref) != ref.digest:
        return "its digest differs"
    return None


def _opens(store: Store, name: str) -> str | None:
    snapshot = stillroom.open(name, store)
    for split, rows in snapshot.splits.items():
        read = sum(batch.num_rows for batch in snapshot.arrow(split))
        if read != rows:
            return f"split {split} has {read} rows, {rows} expected"
    return _whole(store, _table_of(snapshot.manifest))


def _points_somewhere(store: Store, name: str) -> str | None:
    pointer = promoted(store, name)
    if pointer is not None and pointer["number"] is not None:
        stillroom.open(name, store)
    return None


def _names_a_snapshot(store: Store, key: str) -> str | None:
    found = store.read_json(key)
    return None if store.read(f"snapshots/{found['name']}/{found['number']}.json") else "names a snapshot that isn't there"


def _published(store: Store) -> list[str]:
    return [key for key in store.list("published/") if key.endswith(".json")]


def _table_of(manifest: Mapping[str, Any]) -> TableRef:
    table = manifest["table"]
    return TableRef(table["name"], table["version"], table["rows"], table["fingerprint"], table["digest"])


def _digest(store: Store, ref: TableRef) -> str:
    """The digest computed anew from the rows, by the rule of the engine: light columns count."""
    table = StoredTable(store, replace(ref, rows=-1))
    counted = [field for field in table.schema if field.name in light_names(table.schema)]
    digest = TableDigest(pa.schema(counted))
    for batch in table.scan([field.name for field in counted], batch_size=1024):
        digest.update(batch)
    return digest.hexdigest()


def _blank(value: Any) -> Any:
    """JSON with its times blank, and without the numbers of tables' versions: a crash may leave one that nobody refers to."""
    if isinstance(value, list):
        return [_blank(item) for item in value]
    if not isinstance(value, dict):
        return value
    blank = {key: BLANK[key] if key in BLANK else _blank(item) for key, item in value.items() if not key.startswith("seconds.")}
    return blank | ({"version": 0} if "version" in value and "op" not in value else {})


def _report(store: Store, manifest: dict[str, Any]) -> str:
    """The report of a manifest, made anew; tables are those of the stored one."""
    stored = store.read_json(f"snapshots/{manifest['name']}/{manifest['number']}.json")
    stages = {stage["name"]: stage for stage in stored["stages"]}
    return render(manifest, lambda name: open_table(store, stages[name]["table"]), lambda name: open_table(store, stages[name]["removed"]))
