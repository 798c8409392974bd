"""Traces: which rows somebody means, and in which versions of tables they, or words about them, stand."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stillroom.digests import bytes_digest
from stillroom.errors import InputError, StoreError, UnreachableError
from stillroom.images import ImageFault, as_stored
from stillroom.records import TableRef
from stillroom.remote import reaching
from stillroom.stored import SCAN, StoredTable
from stillroom.stores import Store
from storage.inventory import Inventory
from storage.tombstones import CONTENT, Tombstones

__all__ = ["Place", "Rows", "Trace", "find_rows", "places", "redacted", "trace", "words_about"]

# Which rows of a batch match; None where the batch lacks the column.
Condition = Callable[[pa.RecordBatch], pa.Array | None]
BATCH_ROWS = 8192
SHOWN, SHORTEST_PREFIX = 8, 4
MAX_PICTURE_BYTES = 256 << 20
# A name of fewer characters, or a bare number, stands in many a text without being meant.
SHORTEST_WORD = 6
# RE2 gives up on patterns with too many ways.
WORDS_A_PATTERN = 200
FORGOTTEN = "(forgotten)"
# Columns that hold no text about other rows.
PLAIN = ("sample_id", "source", "parents", "split", "label", "label_name", "format", "kind", "input", "model_id", "scheduler")


@dataclass
class Rows:
    """Rows by what tells them from others: ids, sources (each with the table of the stage that read it), hashes of pictures."""

    ids: set[str] = field(default_factory=set)
    sources: set[tuple[str, str]] = field(default_factory=set)
    contents: set[bytes] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Grows whenever something is learnt."""
        return len(self.ids) + len(self.sources) + len(self.contents)


@dataclass(frozen=True)
class Place:
    """One version of a table: of a record (its rows or those that left) or of a snapshot."""

    ref: TableRef
    fingerprint: str = ""
    snapshot: str = ""
    reads: bool = False

    @property
    def owner(self) -> str:
        """The record's fingerprint, or the snapshot's name."""
        return self.fingerprint or self.snapshot


@dataclass
class Trace:
    """What a version holds of the rows: how many, in which splits, and whether a text mentions them; or why it can't be read."""

    place: Place
    rows: int = 0
    splits: set[str | None] = field(default_factory=set)
    mentions: bool = False
    unreadable: str = ""

    def __bool__(self) -> bool:
        return bool(self.rows or self.mentions or self.unreadable)


def places(inventory: Inventory) -> list[Place]:
    """Every version of every table that a record or a standing manifest names."""
    found = []
    for fingerprint, record in inventory.records.items():
        found += [Place(ref, fingerprint, reads="planned" in record.counts) for ref in (record.table, record.removed) if ref is not None]
    for snapshot in inventory.standing:
        table = inventory.manifests[snapshot]["table"]
        found.append(Place(TableRef(table["name"], table["version"], table["rows"], table["fingerprint"]), snapshot=snapshot))
    return found


def find_rows(store: Store, inventory: Inventory, asked: Sequence[str], tombstones: Tombstones) -> Rows:
    """The rows that are asked for: each an id, a picture file, a source, the end of one, or the beginning of an id.

    What was forgotten already is passed over.

    Raises:
        InputError: one means no row of the store, or several.
    """
    wanted = list(dict.fromkeys(asked))
    found: dict[str, dict[str, str]] = {}
    for ways in (("id", "picture", "source"), ("path", "prefix")):
        for one, by_way in _matches(store, inventory, [one for one in wanted if one not in found], ways).items():
            found[one] = next(by_way[way] for way in ways if by_way.get(way))
    rows = Rows()
    for one in wanted:
        if one in found:
            if len(found[one]) > 1:
                raise _ambiguous(one, found[one])
            rows.ids.update(found[one])
        elif not tombstones.knows(one):
            raise InputError(f"'{one}'", f"is no sample of {store.uri}", "give an id, its beginning, a source as `stillroom explain` shows it, or the picture")
    return rows


def trace(store: Store, inventory: Inventory, rows: Rows) -> list[Trace]:
    """Where the rows stand. What belongs to them is found on the way and added: their sources and pictures, rows
    of the same picture, and rows that have one of them among their `parents`.

    A version that can't be read counts as one that holds them: that it doesn't can't be shown.
    """
    while True:
        before = rows.size
        found = [_trace(store, place, rows) for place in places(inventory)]
        if rows.size == before:
            return [one for one in found if one]


def words_about(rows: Rows) -> list[str]:
    """What may stand in a text about the rows: their ids and sources, unless such a word is too common to tell."""
    words = rows.ids | {source for _, source in rows.sources}
    return sorted(word for word in words if len(word) >= SHORTEST_WORD and not word.isdigit())


def redacted(value: object, words: Collection[str]) -> object:
    """A value of JSON in which no text, at any depth, has these words."""
    if isinstance(value, str):
        for pattern in _patterns(words, "(?<!\\w)", "(?!\\w)"):
            value = re.sub(pattern, FORGOTTEN, value)
        return value
    if isinstance(value, dict):
        return {redacted(key, words): redacted(entry, words) for key, entry in value.items()}
    return [redacted(entry, words) for entry in value] if isinstance(value, list) else value


def _matches(store: Store, inventory: Inventory, asked: list[str], ways: Sequence[str]) -> dict[str, dict[str, dict[str, str]]]:
    """For each of `asked`, by the way in which they match, ids and a source of each; what can't be read is passed over."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    conditions = {(one, way): condition for one in asked for way in ways if (condition := _condition(one, way))}
    for place in places(inventory) if conditions else ():
        try:
            for batch in _batches(store, place, lambda name, kind: name in ("sample_id", "source", f"{CONTENT}_hash")):
                _match(batch, conditions, found)
        except UnreachableError:
            raise
        except (StoreError, OSError, ValueError):
            continue
    return found


def _match(batch: pa.RecordBatch, conditions: Mapping[tuple[str, str], Condition], found: dict[str, dict[str, dict[str, str]]]) -> None:
    for (one, way), condition in conditions.items():
        mask = condition(batch)
        if mask is not None and pc.any(mask).as_py():
            ids = found.setdefault(one, {}).setdefault(way, {})
            for row in batch.filter(mask).slice(0, 10 * SHOWN).to_pylist():
                ids.setdefault(row["sample_id"], _text(row.get("source")))


def _condition(asked: str, way: str) -> Condition | None:
    """A function that says which rows of a batch match in one way; None where it can't be asked in this way."""
    column = {"id": "sample_id", "prefix": "sample_id", "picture": f"{CONTENT}_hash"}.get(way, "source")
    if way in ("id", "source"):
        return lambda batch: _test(batch, column, lambda values: pc.equal(values, asked))
    if way == "prefix":
        return (lambda batch: _test(batch, column, lambda values: pc.starts_with(values, asked))) if len(asked) >= SHORTEST_PREFIX else None
    if way == "picture":
        contents = _picture(asked)
        return (lambda batch: _test(batch, column, lambda values: pc.is_in(values, pa.array(contents, values.type)))) if contents else None
    parts = Path(asked).parts
    # A path from the root, or from some folder, ends in what ingest calls its source; or a source ends in what was asked.
    ends = pa.array(["/".join(parts[start:]) for start in range(1, len(parts))], pa.string())
    return lambda batch: _test(batch, column, lambda values: pc.or_(pc.is_in(values, ends), pc.ends_with(values, f"/{asked}")))


def _test(batch: pa.RecordBatch, column: str, test: Callable[[pa.Array], pa.Array]) -> pa.Array | None:
    if column not in batch.schema.names:
        return None
    values = batch[column]
    return test(values if pa.types.is_fixed_size_binary(values.type) else values.cast(pa.string()))


def _picture(asked: str) -> list[bytes]:
    """The hashes that a picture file may have in a store: of its bytes as found, and as ingest would store them."""
    try:
        path = Path(asked)
        if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
            return []
        data = path.read_bytes()
        return [bytes_digest(data), bytes_digest(as_stored(data).data)]
    except (OSError, ImageFault):
        return []


def _ambiguous(asked: str, ids: dict[str, str]) -> InputError:
    listed = "; ".join(f"{sample_id}{f' ({source})' if source else ''}" for sample_id, source in list(ids.items())[:SHOWN])
    more = " and more" if len(ids) > SHOWN else ""
    return InputError(f"'{asked}'", f"could be any of {len(ids)} samples: {listed}{more}", "give one or more of these ids")


def _trace(store: Store, place: Place, rows: Rows) -> Trace:
    found = Trace(place)
    patterns = _patterns(words_about(rows), r"(?:^|\W)", r"(?:$|\W)")
    try:
        for batch in _batches(store, place, _tells):
            mask = _are(batch, rows)
            if pc.any(mask).as_py():
                _learn(batch.filter(mask), place, rows, found)
            found.mentions = found.mentions or any(_mentions(batch[name], patterns) for name in batch.schema.names if name not in PLAIN)
    except UnreachableError:
        raise
    except (StoreError, OSError, ValueError) as error:
        found.unreadable = str(error).splitlines()[0]
    return found


def _are(batch: pa.RecordBatch, rows: Rows) -> pa.Array:
    """Which rows of a batch are meant: by id, by picture, or as a child of one that is."""
    if "sample_id" not in batch.schema.names:
        return pa.repeat(pa.scalar(False), batch.num_rows)
    ids = pa.array(sorted(rows.ids), pa.string())
    mask = pc.is_in(batch["sample_id"].cast(pa.string()), ids)
    if f"{CONTENT}_hash" in batch.schema.names:
        hashes = batch[f"{CONTENT}_hash"]
        mask = pc.or_(mask, pc.is_in(hashes, pa.array(sorted(rows.contents), hashes.type)))
    if "parents" in batch.schema.names:
        parents = batch["parents"]
        children = {
            row
            for row, hit in zip(pc.list_parent_indices(parents).to_pylist(), pc.is_in(parents.flatten().cast(pa.string()), ids).to_pylist(), strict=True)
            if hit
        }
        mask = pc.or_(mask, pa.array([row in children for row in range(batch.num_rows)]))
    return mask


def _learn(batch: pa.RecordBatch, place: Place, rows: Rows, found: Trace) -> None:
    found.rows += batch.num_rows
    found.splits |= set(batch["split"].to_pylist()) if "split" in batch.schema.names else {None}
    rows.ids |= set(batch["sample_id"].cast(pa.string()).to_pylist()) - {None}
    if "source" in batch.schema.names:
        table = place.ref.name.removesuffix(".removed") if place.reads else ""
        rows.sources |= {(table, str(source)) for source in batch["source"].to_pylist() if source is not None}
    if f"{CONTENT}_hash" in batch.schema.names:
        rows.contents |= set(batch[f"{CONTENT}_hash"].to_pylist()) - {None}


def _tells(name: str, kind: pa.DataType) -> bool:
    """Whether a column may say which row it is, or something about others."""
    return name in ("sample_id", "source", "parents", "split", f"{CONTENT}_hash") or (name not in PLAIN and _has_text(kind))


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_text(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _mentions(values: pa.Array, patterns: Sequence[str]) -> bool:
    if pa.types.is_struct(values.type):
        return any(_mentions(part, patterns) for part in values.flatten())
    if pa.types.is_nested(values.type):
        return _mentions(values.flatten(), patterns)
    if not _has_text(values.type):
        return False
    text = values.cast(pa.string())
    return any(pc.any(pc.match_substring_regex(text, pattern)).as_py() for pattern in patterns)


def _patterns(words: Collection[str], before: str, after: str) -> list[str]:
    """Regular expressions that find any of the words, whole ones, the longest first."""
    ordered = [re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))]
    return [f"{before}(?:{'|'.join(ordered[at : at + WORDS_A_PATTERN])}){after}" for at in range(0, len(ordered), WORDS_A_PATTERN)]


def _batches(store: Store, place: Place, wanted: Callable[[str, pa.DataType], bool]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a version, some thousand rows at a time."""
    dataset = StoredTable(store, place.ref).dataset
    names = [one.name for one in dataset.schema if wanted(one.name, one.type) and not one.name.endswith("_at")]
    if names:
        with reaching(store.uri):
            yield from dataset.scanner(columns=names, batch_size=BATCH_ROWS, **SCAN).to_batches()


def _text(source: object) -> str:
    return ", ".join(map(str, source)) if isinstance(source, Iterable) and not isinstance(source, str) else str(source or "")
