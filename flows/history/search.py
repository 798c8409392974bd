"""Find a sample by what a person has of it: an id, the beginning of one, a source path, or the picture itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from stillroom.digests import bytes_digest
from stillroom.errors import InputError, StoreError
from stillroom.images import ImageFault, as_stored, decode
from stillroom.remote import reaching
from stillroom.snapshots import Snapshot, list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import SCAN, StoredTable, open_table
from stillroom.stores import Store
from tasks.ingest._samples import content_id, pixels_id

__all__ = ["Match", "find_sample", "matching"]

SHOWN = 8
MAX_PICTURE_BYTES = 256 << 20
SHORT_ID = 12
# For a sample that isn't where it was looked for, so many of the latest snapshots are looked into.
LOOKED_INTO = 20

How = Literal["id", "picture", "source", "path", "prefix"]


@dataclass(frozen=True)
class Match:
    """The one sample that was meant, and what it was found by; `source` is the one that matched."""

    sample_id: str
    source: str
    how: How


@dataclass(frozen=True)
class _Picture:
    """What a picture file would be called in a store: the ids that ingest gives by content, and the hashes of its bytes."""

    ids: list[str]
    hashes: list[bytes]


def find_sample(snapshot: Snapshot, asked: str) -> Match:
    """Find the sample in what a snapshot was made of, rows that left on the way included.

    An exact id comes first, then the content of a picture file, a whole source, the end of one, and
    the beginning of an id.

    Raises:
        InputError: nothing matches, or several samples do equally well.
    """
    if not asked:
        raise InputError("SAMPLE", "is empty", "give an id, the beginning of one, a source path, or a picture file")
    tables = list(_tables(snapshot))
    picture = _picture(asked)
    for how in ("id", "picture", "source", "path", "prefix"):
        found = _found(tables, how, asked, picture)
        if len({sample_id for sample_id, _ in found}) > 1:
            raise _ambiguous(snapshot, asked, found)
        for sample_id, source in found:
            return Match(sample_id, source, how)
    raise _unknown(snapshot, asked, tables)


def matching(table: StoredTable, expression: Any, columns: list[str], limit: int | None = None) -> pa.Table:
    """The rows of a table for which an expression over light columns holds, in bounded memory."""
    with reaching(table.store.uri):
        return table.dataset.to_table(columns=columns, filter=expression, limit=limit, **SCAN)


def _tables(snapshot: Snapshot) -> Iterator[StoredTable]:
    """Where every row of a lineage stands once: its sources, what left, and the snapshot itself. Tables that gc took are left out."""
    refs = [snapshot.manifest["table"]]
    for stage in snapshot.manifest["stages"]:
        if stage["gives"] == "samples":
            refs += [stage["table"]] if stage["shape"] == "source" else []
            refs += [stage["removed"]] if stage["removed"] else []
    for ref in refs:
        table = open_table(snapshot.store, ref)
        try:
            table.schema  # noqa: B018 (opens it)
        except StoreError:
            continue
        yield table


def _found(tables: list[StoredTable], how: str, asked: str, picture: _Picture | None) -> list[tuple[str, str]]:
    """Ids and sources that match in one way, by source, each id once, some more than are ever shown."""
    found: dict[str, str] = {}
    for table in tables:
        expression = _expression(table.schema, how, asked, picture)
        if expression is None:
            continue
        has_source = "source" in table.schema.names
        rows = matching(table, expression, ["sample_id", *(["source"] if has_source else [])], 10 * SHOWN)
        for row in rows.to_pylist():
            found.setdefault(row["sample_id"], _text(row.get("source")))
    return sorted(found.items(), key=lambda pair: (pair[1], pair[0]))


def _expression(schema: pa.Schema, how: str, asked: str, picture: _Picture | None) -> Any:
    """The condition for one way to match, or None where a table lacks what it needs."""
    sample_id, source = pc.field("sample_id"), pc.field("source")
    with_text = "source" in schema.names and types.is_string(schema.field("source").type)
    if how == "id":
        return sample_id == asked
    if how == "prefix":
        return pc.starts_with(sample_id, pattern=asked)
    if how == "picture" and picture:
        by_id = sample_id.isin(picture.ids)
        return by_id | pc.field("image_hash").isin(pa.array(picture.hashes, schema.field("image_hash").type)) if "image_hash" in schema.names else by_id
    if how == "source" and with_text:
        return source == asked
    if how == "path" and with_text:
        parts = Path(asked).parts
        # A file named from the root, or from a folder, ends in what ingest calls its source; or a source ends in what was asked.
        ends = ["/".join(parts[start:]) for start in range(1, len(parts))]
        return source.isin(ends) | pc.ends_with(source, pattern=f"/{asked}") if ends else pc.ends_with(source, pattern=f"/{asked}")
    return None


def _picture(asked: str) -> _Picture | None:
    """What is known of a file by its content, or None where there is no such file."""
    try:
        path = Path(asked)
        if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    ids, hashes = [content_id(data)], [bytes_digest(data)]
    try:
        hashes.append(bytes_digest(as_stored(data).data))
        ids.append(pixels_id(decode(data)))
        ids += [pixels_id(decode(data)[..., 0])]
    except ImageFault:
        pass  # a broken picture was rejected under the id of its bytes
    return _Picture(ids, hashes)


def _ambiguous(snapshot: Snapshot, asked: str, found: list[tuple[str, str]]) -> InputError:
    listed = "; ".join(f"{sample_id}{f' ({source})' if source else ''}" for sample_id, source in found[:SHOWN])
    more = " and more" if len(found) > SHOWN else ""
    return InputError(f"'{asked}'", f"could be any of {len(found)} samples of {snapshot.name}: {listed}{more}", "give one of these ids")


def _unknown(snapshot: Snapshot, asked: str, tables: list[StoredTable]) -> InputError:
    """Nothing matched: say where it is instead, or what comes nearest, or what ids and sources look like here."""
    place = f"'{asked}'"
    problem = f"is no sample of {snapshot.name}, nor did one of that id or source leave on its way there"
    if elsewhere := _elsewhere(snapshot.store, snapshot.name, asked):
        return InputError(place, problem, f"`stillroom explain {elsewhere} {asked}` finds it")
    base = Path(asked).name
    near = _found(tables, "path", base, None) or _found(tables, "source", base, None) if base != asked else []
    if near:
        return InputError(place, problem, f"did you mean {' or '.join(repr(source) for _, source in near[:3])}?")
    for table in tables:
        if table.rows and "source" in table.schema.names:
            (row,) = table.take([0], ["sample_id", "source"]).to_pylist()
            looks = f"ids look like {row['sample_id'][:SHORT_ID]}…" + (f", sources like '{_text(row['source'])}'" if row["source"] else "")
            return InputError(place, problem, looks)
    return InputError(place, problem, f"`stillroom show {snapshot.name} --lineage` says what it was made of")


def _elsewhere(store: Store, name: str, asked: str) -> str | None:
    """The latest other snapshot in whose lineage is a sample of exactly this id or source."""
    lines = sorted(list_snapshots(store), key=lambda line: str(line["created"]), reverse=True)
    for line in lines[:LOOKED_INTO]:
        other = f"{line['name']}@{line['number']}"
        try:
            if other != name and any(_found(list(_tables(open_snapshot(other, store))), how, asked, None) for how in ("id", "source")):
                return other
        except StoreError:
            continue
    return None


def _text(source: Any) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list) else str(source or "")
