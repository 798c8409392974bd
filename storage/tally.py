"""The tally of rows as they are written: their digest and whether their ids are unique, before any disk has seen them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.digests import TableDigest
from stillroom.errors import StoreError
from stillroom.fields import light_names
from stillroom.repeats import hashed, met_twice
from stillroom.stored import AT_TYPE, StoredTable, logical_schema

__all__ = ["Tally", "checked_tally"]


class Tally:
    """Counts batches in a table's stored schema, on their way to it or back from it.

    A heavy value counts by its hash, and its place not at all: moving it changes no digest.
    """

    def __init__(self, stored: pa.Schema) -> None:
        logical = logical_schema(stored)
        counted = set(light_names(logical)) & set(stored.names)
        self.digest = TableDigest(pa.schema([field for field in logical if field.name in counted]))
        self._has_ids = "sample_id" in counted
        self._ids: list[np.ndarray] = []
        self._places = [field.name for field in stored if field.type == AT_TYPE]
        self.origins: set[str] = set()

    @property
    def columns(self) -> list[str]:
        """The columns that count."""
        return list(self.digest.schema.names)

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in the next rows."""
        self.digest.update(batch)
        if self._has_ids:
            self._ids.append(hashed(batch["sample_id"]))
        for name in self._places:
            if name in batch.schema.names:
                self.origins.update(filter(None, pc.unique(batch[name].field("origin")).to_pylist()))

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches, counted as they go by."""
        for batch in batches:
            self.update(batch)
            yield batch

    def repeated(self) -> np.ndarray:
        """Hashes, uint64, of sample ids that came more than once, or of different ones that happen to share a hash."""
        return met_twice(self._ids)

    def as_json(self) -> dict[str, Any]:
        """Rows, digest, roots and leaves of the columns, where heavy values are, and whether an id may have come twice."""
        told = {"rows": self.digest.rows, "digest": self.digest.hexdigest(), "columns": self.digest.columns(), "origins": sorted(self.origins)}
        return {**told, "leaves": self.digest.leaves, "doubtful": bool(len(self.repeated()))}


def checked_tally(table: StoredTable, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tally of a committed table as a whole, and `unique`: whether its sample ids are.

    Args:
        table: what was committed.
        parts: the tallies of its parts, in order, made while each was written. One alone is the whole's;
            several are read back and compared, since blocks of a digest go across them.

    Raises:
        StoreError: what is read back isn't what was written.
    """
    if len(parts) == 1 and not parts[0]["doubtful"]:
        return parts[0] | {"unique": True}
    stored = table.dataset.schema
    whole, start = Tally(stored), 0
    for part in parts:
        tally, stop = Tally(stored), start + part["rows"]
        for batch in table.scan(whole.columns, 8192, start, stop):
            whole.update(batch)
            tally.update(batch)
        if tally.digest.hexdigest() != part["digest"]:
            problem = f"rows {start:,} to {stop - 1:,} read back are not those that were written"
            raise StoreError(f"table '{table.ref.name}'", problem, "look after the disk, and build again")
        start = stop
    origins = sorted({origin for part in parts for origin in part["origins"]})
    return whole.as_json() | {"origins": origins, "unique": _unique(table, whole.repeated())}


def _unique(table: StoredTable, doubtful: np.ndarray) -> bool:
    if not len(doubtful):
        return True
    seen: set[str] = set()
    for batch in table.scan(["sample_id"], 8192):
        for sample in batch["sample_id"].filter(pa.array(np.isin(hashed(batch["sample_id"]), doubtful))).to_pylist():
            if sample in seen:
                return False
            seen.add(sample)
    return True
