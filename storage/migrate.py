"""Migrate: bring a store of an older format up to this one, in place.

Format 0 had neither checksums nor sizes and hashes of files. Tables stay as they are; each is read
once, and has to be what its record says, before its files are written down.
"""

import json
from collections.abc import Callable
from typing import Any

from stillroom.errors import StoreError
from stillroom.format import FORMAT, FORMAT_KEY, format_of, prepare
from stillroom.records import TableRef
from stillroom.sealed import is_whole_text, seal_text
from stillroom.stored import AT_TYPE, SCAN, StoredTable
from stillroom.stores import Store
from storage.commits import version_facts
from storage.tally import Tally

__all__ = ["migrate"]


def migrate(store: Store, say: Callable[[str], None] = lambda text: None) -> int:
    """Bring a store up to the present format; one that is there already is left alone.

    Records come first and the format last, so that a migration which was cut off goes on.

    Returns:
        How many objects were rewritten.

    Raises:
        StoreError: the store is newer, or a table isn't what its record says.
    """
    before = format_of(store)
    if before is None or before >= FORMAT:
        prepare(store)
        return 0
    rewritten = 0
    for key in store.list(""):
        folder, _, _ = key.partition("/")
        if ".lance/" in key or folder not in ("records", "snapshots", "published", "promoted", "runs"):
            continue
        if key.endswith((".json", ".leaves")) and (value := _unsealed(store, key)) is not None:
            say(key)
            store.put_json(key, _UPGRADES.get(folder, _as_it_is)(store, key, value))
            rewritten += 1
        elif key.endswith(".html") and not is_whole_text(raw := store.read(key) or b""):
            store.put(key, seal_text(raw.decode()))
    store.create_json(FORMAT_KEY, {"format": FORMAT, "id": "migrated"})
    return rewritten


def _unsealed(store: Store, key: str) -> dict[str, Any] | None:
    """The value of an object of format 0; None where this migration was there before it was cut off."""
    value: dict[str, Any] = json.loads(store.read(key) or b"{}")
    return None if "checksum" in value else value


def _record(store: Store, key: str, value: dict[str, Any]) -> dict[str, Any]:
    if key.endswith(".leaves"):
        return {"leaves": value}
    refs = [TableRef(**value[name]) for name in ("table", "removed") if value[name]]
    tally = _checked(store, refs[0])
    rest = {name: item for name, item in value.items() if name != "format"}
    return rest | {"files": version_facts(store, refs, {}), "origins": tally["origins"]}


def _manifest(store: Store, key: str, value: dict[str, Any]) -> dict[str, Any]:
    ref = TableRef.published(value)
    store.put_json(f"published/{ref.fingerprint}.leaves", {"leaves": _checked(store, ref)["leaves"]})
    rest = {name: item for name, item in value.items() if name != "format"}
    return rest | {"files": version_facts(store, [ref], {})}


def _as_it_is(store: Store, key: str, value: dict[str, Any]) -> dict[str, Any]:
    return value


_UPGRADES = {"records": _record, "snapshots": _manifest}


def _checked(store: Store, ref: TableRef) -> dict[str, Any]:
    """The tally of a table, which must have the digest that was recorded."""
    table = StoredTable(store, ref)
    tally = Tally(table.dataset.schema)
    places = [field.name for field in table.dataset.schema if field.type == AT_TYPE]
    for batch in table.dataset.to_batches(columns=[*tally.columns, *places], batch_size=8192, **SCAN):
        tally.update(batch)
    found = tally.as_json()
    if found["digest"] != ref.digest:
        raise StoreError(f"table '{ref.name}'", f"version {ref.version} isn't what its record says, and isn't migrated", "bring it back from a copy first")
    return found
