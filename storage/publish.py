"""Publishing: one table with all splits, a manifest by conditional put, then the tag.

The manifest publishes: before it a reader sees nothing new, after it the snapshot is whole. A tag
`vN` that a crash left out is set by the next build.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError

from stillroom.draws import Draw
from stillroom.fields import heavy_kind
from stillroom.format import prepare
from stillroom.integrity import file_facts
from stillroom.records import TableRef
from stillroom.remote import ask
from stillroom.snapshots import withdrawn
from stillroom.stored import StoredTable, snapshot_fields, table_bytes
from stillroom.stores import Store
from stillroom.tables import one_array
from storage.commits import commit_fragments, data_files, version_facts, write_batches
from storage.decoded import Choice, choose_decoded, decoded_images
from storage.indexes import add_indexes, index_bytes
from storage.manifests import list_manifests
from storage.space import room_for, row_bytes, snapshot_bytes
from storage.tally import Tally, checked_tally

__all__ = [
    "WrittenSnapshot",
    "publish_manifest",
    "snapshot_order",
    "tag_snapshots",
    "write_snapshot",
    "write_version",
]

# In a batch of rows on their way into a snapshot.
TAKEN_BYTES = 16 << 20


def snapshot_order(table: StoredTable, seed: int, split: str) -> np.ndarray:
    """Positions of a split's rows in the order of hash(seed, id): a sequential read is shuffled."""
    return Draw(seed, f"snapshot/{split}").order(table.frame(["sample_id"])["sample_id"])


def write_snapshot(
    store_uri: str, name: str, splits: Sequence[tuple[str, TableRef]], seed: int, fingerprint: str,
    index: Mapping[str, str] = MappingProxyType({}), decoded: Choice = "never",
) -> "WrittenSnapshot":  # fmt: skip
    """Write all splits, one after another, as a new version of the published table; visible to nobody by name yet.

    Each split's rows are in the order of hash(seed, id). A split that lacks a column has null there.

    Args:
        index: the metric of each vector column that gets an index.
        decoded: whether images are stored decoded as well.
    """
    store = Store(store_uri)
    tables = {split: StoredTable(store, ref) for split, ref in splits}
    schema = snapshot_fields(table.schema for table in tables.values())
    pixels, told = choose_decoded(list(tables.values()), decoded)
    schema = schema.append(pixels) if pixels else schema
    total, pixel_bytes = sum(table.rows for table in tables.values()), pixels.type.byte_width if pixels else 0

    def batches() -> Iterator[pa.RecordBatch]:
        for split, table in tables.items():
            order = snapshot_order(table, seed, split)
            names = [field.name for field in schema if field.name in table.schema.names and field.name != "split"]
            rows = _rows_at_once(row_bytes(table) + pixel_bytes)
            for start in range(0, len(order), rows):
                found = table.take(order[start : start + rows], names)
                arrays = [_column(found, field, split) for field in schema]
                yield pa.record_batch(arrays, schema=schema)

    more = index_bytes(schema, total, index) + total * pixel_bytes if store.local else 0
    with room_for(store, "publish", snapshot_bytes(tables.values()) + more):
        return write_version(store, name, schema, batches(), fingerprint, index=index)._replace(decoded=told)


def write_version(
    store: Store, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], fingerprint: str, *,
    index: Mapping[str, str] = MappingProxyType({}), check: Callable[[str], None] = lambda digest: None,
) -> "WrittenSnapshot":  # fmt: skip
    """Write rows as a new version of a published table, counted while they are written; indexes, if any, make a second one of it.

    Args:
        index: as `add_indexes` takes them.
        check: told the digest of the rows before they are committed; what it raises leaves nothing to be seen.
    """
    tally = Tally(schema)
    fragments = write_batches(store, name, tally.watch(batches), schema)
    check(tally.digest.hexdigest())
    known = file_facts(store, data_files(name, fragments))
    while True:
        rows = commit_fragments(store, name, schema, fragments, fingerprint=fingerprint, digest=tally.digest.hexdigest())
        try:
            table, indexes = add_indexes(store, rows, index)
            break
        except CommitConflictError:
            continue  # somebody else published meanwhile, and an index lies on the newest rows: ours come once more
    counted = checked_tally(StoredTable(store, table), [tally.as_json()])
    store.put_json(f"published/{fingerprint}.leaves", {"leaves": counted["leaves"]})
    return WrittenSnapshot(table, counted["unique"], counted["columns"], version_facts(store, list({rows, table}), known), indexes)


class WrittenSnapshot(NamedTuple):
    """A published table's new version: whether sample ids are unique, digests of columns, size and BLAKE3 of files by store key, indexes, decoded images."""

    table: TableRef
    unique: bool
    columns: dict[str, Any]
    files: dict[str, list[int | str]]
    indexes: dict[str, Any]
    decoded: Mapping[str, Any] = MappingProxyType({})

    def facts(self, store: Store) -> dict[str, Any]:
        """What a manifest says of the table."""
        table = self.table
        where = {"name": table.name, "version": table.version, "fingerprint": table.fingerprint, "rows": table.rows, "digest": table.digest}
        more = {"indexes": self.indexes, "decoded": dict(self.decoded)}
        return {
            "table": {**where, "columns": self.columns},
            "files": self.files,
            "bytes": table_bytes(store, table),
            **{key: has for key, has in more.items() if has},
        }


def publish_manifest(store: Store, manifest: dict[str, Any]) -> dict[str, Any]:
    """Give a manifest the next free number and put it there; what comes back is what stands in the store.

    A snapshot of the same content as an earlier one gets no new number, where it has no further index, no decoded images
    that the other lacks, and was judged alike: the earlier manifest comes back.
    """
    prepare(store)
    name = manifest["name"]
    while True:
        manifests = list_manifests(store, name)
        for earlier in manifests:
            same = all(earlier[key] == manifest[key] for key in ("digest", "trial", "splits"))
            if (
                same
                and _is_indexed(earlier, manifest)
                and _has_decoded(earlier) >= _has_decoded(manifest)
                and _is_judged(earlier, manifest)
                and not withdrawn(store, name, earlier["number"])
            ):
                tag_snapshots(store, name)
                return earlier
        number = max((earlier["number"] for earlier in manifests), default=0) + 1
        numbered = manifest | {"number": number, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        if store.create_json(f"snapshots/{name}/{number}.json", numbered):
            break
        # Somebody else took the number, perhaps for the same content: look again.
    tag_snapshots(store, name)
    return numbered


def tag_snapshots(store: Store, name: str) -> None:
    """Set the tag `vN` of each snapshot of a name that a crash left without one."""
    for manifest in list_manifests(store, name):
        if not withdrawn(store, name, manifest["number"]):
            _tag(store, manifest)


def _is_indexed(earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether an earlier snapshot has all indexes of this one."""
    had = earlier.get("indexes", {})
    return all(had.get(column) == facts for column, facts in manifest.get("indexes", {}).items())


def _has_decoded(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest.get("decoded", {}).get("stored"))


def _is_judged(earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether an earlier snapshot's judgement is this one's, or this one has none: rows that are judged otherwise must not keep the old word."""
    return _judgement(manifest) in ([], _judgement(earlier))


def _judgement(manifest: Mapping[str, Any]) -> list[Any]:
    """Accuracies and differences of proof and judged sets, without what says nothing of their worth: seconds, places, names of stages."""
    proof = manifest.get("proof") or {}
    arms = [[arm.get(key) for key in ("arm", "rows", "seeds", "accuracy", "low", "high")] for arm in proof.get("arms") or ()]
    return [*arms, *(proof.get("differences") or ()), *(line for stage in manifest.get("judged") or () for line in stage["lines"])]


def _rows_at_once(of_one: float) -> int:
    """How many rows are taken at a time, by the bytes of one: a take costs more than its rows where they are small, and a batch of large ones memory."""
    return min(65_536, max(256, int(TAKEN_BYTES / (of_one + 1))))


def _column(found: pa.Table, field: pa.Field, split: str) -> pa.Array:
    if field.name == "split":
        return pa.array([split] * found.num_rows)
    if heavy_kind(field) == "decoded":
        return decoded_images(found, field)
    if field.name not in found.column_names:
        return pa.nulls(found.num_rows, field.type)
    return one_array(found[field.name])


def _tag(store: Store, manifest: dict[str, Any]) -> None:
    tags = ask(store.uri, lambda: lance.dataset(store.table_uri(manifest["name"]))).tags
    tag = f"v{manifest['number']}"
    if tag not in ask(store.uri, tags.list):
        with suppress(ValueError):  # somebody else, who publishes now, tagged it meanwhile
            ask(store.uri, lambda: tags.create(tag, manifest["table"]["version"]))
