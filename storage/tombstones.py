"""Tombstones: what a store must never take in again, as salted hashes that say of nobody who it was.

    forgotten/salt.json    the store's own salt, 32 random bytes
    forgotten/<k>.json     one a `forget`: hashes of ids, of sources and of contents

A source's row is forgotten if its id or its picture is, whatever stage of whatever recipe reads it,
or its source is where the same stage reads it: files of one name in two folders are two files.
Names and ids can be guessed, so who has salt and tombstones can find out whether a guess is right;
what they can't do is read them off.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.digests import json_digest
from stillroom.errors import StoreError
from stillroom.format import prepare
from stillroom.snapshots import numbered
from stillroom.stored import hashes
from stillroom.stores import Store

__all__ = ["CONTENT", "FOLDER", "Tombstones", "bury", "carry_tombstones", "read_tombstones", "source_name"]

FOLDER = "forgotten/"
SALT_KEY = "forgotten/salt.json"
# The column that is a sample's content: two rows with the same mask or caption aren't the same sample.
CONTENT = "image"
KINDS = ("ids", "sources", "contents")


@dataclass(frozen=True)
class Tombstones:
    """All that a store has forgotten.

    Args:
        salt: 32 bytes.
        stones: what each `forget` left, in order: `ids`, `sources`, `contents` (hashes); `tables`, names of
            the tables of the source stages that read the rows, and `read_by`, those stages' fingerprints.
    """

    salt: bytes
    stones: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.stones)

    def hash(self, kind: str, value: str) -> str:
        """The salted hash of an id, of `<table>|<source>`, or of a content's 16 bytes in hex."""
        return blake3(f"{kind}|{value}".encode(), key=self.salt).hexdigest(length=16)

    def knows(self, asked: str) -> bool:
        """Whether an id, or a source of one of the stages that read such a row, was forgotten."""
        tables = {table for stone in self.stones for table in stone["tables"]}
        return bool(self) and (
            self.hash("ids", asked) in self._known["ids"] or any(self.hash("sources", source_name(table, asked)) in self._known["sources"] for table in tables)
        )

    def forgotten(self, batch: pa.RecordBatch, table: str) -> np.ndarray:
        """Which rows of a batch were forgotten, bool [B]; `table` is that of the stage that reads them."""
        gone_B = np.zeros(batch.num_rows, bool)
        for kind, values in _columns(batch, table).items():
            known = self._known[kind]
            gone_B |= np.fromiter((value is not None and self.hash(kind, value) in known for value in values), bool, batch.num_rows)
        return gone_B

    def mark(self, fingerprint: str) -> str | None:
        """What the fingerprint of a source stage must hold beside `fingerprint`, its own without tombstones; None where nothing concerns it.

        A source that never held what was forgotten keeps its fingerprint, and so its table and all that was made of it.
        """
        concerned = [[stone[kind] for kind in KINDS] for stone in self.stones if fingerprint in stone["read_by"]]
        return json_digest(concerned) if concerned else None

    @cached_property
    def _known(self) -> dict[str, frozenset[str]]:
        return {kind: frozenset(value for stone in self.stones for value in stone[kind]) for kind in KINDS}


def read_tombstones(store: Store) -> Tombstones:
    """The tombstones of a store; none where nothing was ever forgotten."""
    numbers = numbered(store, FOLDER)
    if not numbers:
        return Tombstones(b"")
    return Tombstones(_salt(store), [store.read_json(f"{FOLDER}{number}.json") for number in numbers])


def bury(store: Store, ids: Iterable[str], sources: Iterable[tuple[str, str]], contents: Iterable[bytes], read_by: Iterable[str], at: str) -> int:
    """Write the next tombstone, unless one says all of it already; its number."""
    store.create_json(SALT_KEY, {"salt": secrets.token_bytes(32).hex()})
    read = [(table, source) for table, source in sources if table]
    values = {
        "ids": sorted(set(ids)),
        "sources": sorted({source_name(table, source) for table, source in read}),
        "contents": sorted({content.hex() for content in contents}),
    }
    while True:
        salt = _salt(store)
        known = Tombstones(salt, read_tombstones(store).stones)
        stone = {kind: sorted(known.hash(kind, value) for value in values[kind]) for kind in KINDS}
        stone |= {"tables": sorted({table for table, _ in read}), "read_by": sorted(set(read_by))}
        for number, standing in enumerate(known.stones, 1):
            if all(set(stone[name]) <= set(standing[name]) for name in stone):
                return number
        number = len(known.stones) + 1
        if store.create_json(f"{FOLDER}{number}.json", {"k": number, "at": at, **stone}):
            return number


def carry_tombstones(store: Store, into: Store) -> int:
    """Let another, empty store forget what this one did; how many tombstones there are."""
    found = read_tombstones(store)
    if found:
        prepare(into)
        into.put_json(SALT_KEY, {"salt": found.salt.hex()})
        for number, stone in enumerate(found.stones, 1):
            into.put_json(f"{FOLDER}{number}.json", stone)
    return len(found.stones)


def _salt(store: Store) -> bytes:
    value = store.read_json(SALT_KEY)
    if value is None:
        raise StoreError(f"'{SALT_KEY}'", "is missing, so what was forgotten can't be known again", "bring it back from a copy")
    return bytes.fromhex(value["salt"])


def source_name(table: str, source: str) -> str:
    """A source together with the stage that reads it."""
    return f"{table}|{source}"


def _columns(batch: pa.RecordBatch, table: str) -> dict[str, list[str | None]]:
    """Of each kind, what the rows have to compare."""
    columns: dict[str, list[str | None]] = {"ids": batch["sample_id"].cast(pa.string()).to_pylist()}
    if "source" in batch.schema.names:
        columns["sources"] = [None if source is None else source_name(table, str(source)) for source in batch["source"].to_pylist()]
    if f"{CONTENT}_hash" in batch.schema.names:
        columns["contents"] = [None if value is None else value.hex() for value in batch[f"{CONTENT}_hash"].to_pylist()]
    elif CONTENT in batch.schema.names:
        columns["contents"] = [None if value is None else value.hex() for value in hashes(batch[CONTENT]).to_pylist()]
    return columns
