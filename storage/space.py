"""Space: a stage that won't fit on the disk doesn't start, and a disk that fills anyway is told in one line.

An object store has as much room as is paid for: nothing is checked there. A write that finds no room
leaves nothing (Lance and obstore take their unfinished file back), and what was finished before it stays.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from stillroom.disk import is_full
from stillroom.errors import StageError, StoreError
from stillroom.stored import StoredTable
from stillroom.stores import Store

__all__ = ["SMALL_BYTES", "free_bytes", "full_disk", "mean_bytes", "megabytes", "room_for", "row_bytes", "snapshot_bytes", "spread"]

# Manifests of a table, a record, notes of finished work.
SMALL_BYTES = 1 << 19

HINT = "make room, such as by `stillroom gc`; the same build goes on where it stopped"


def free_bytes(store: Store) -> int | None:
    """How much more a folder store may hold; None for an object store."""
    return None if store.local is None else shutil.disk_usage(_there(store.local)).free


@contextmanager
def room_for(store: Store, stage: str, needed: int) -> Iterator[None]:
    """Do what takes about so many bytes of a store, if there is room for it.

    Raises:
        StageError: there isn't, which is known before it begins; or the disk fills up on the way.
    """
    free = free_bytes(store)
    if free is not None and needed > free:
        raise StageError(stage, f"needs about {megabytes(needed)} on the disk, and {_place(store)} has {megabytes(free)} free", HINT)
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        about = f", and it needs about {megabytes(needed)} in all" if needed else ""
        raise StageError(stage, f"the disk is full: {_place(store)} has {megabytes(_free(store))} free{about}", HINT) from None


@contextmanager
def full_disk(store: Store) -> Iterator[None]:
    """Tell in one line that the disk is full.

    Raises:
        StoreError: it is.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise StoreError(_place(store), f"the disk is full: {megabytes(_free(store))} are free", "make room, such as by `stillroom gc`") from None


def snapshot_bytes(tables: Iterable[StoredTable]) -> int:
    """The disk that these tables take as a published one, which holds heavy values itself; 0 in an object store."""
    total = 0
    for table in tables:
        if table.store.local is not None and table.rows:
            total += int(1.1 * table.rows * row_bytes(table)) + SMALL_BYTES
    return total


def row_bytes(table: StoredTable) -> float:
    """The bytes of a row with its heavy values, by some of the rows; 0 where there are none."""
    return mean_bytes(table.take(spread(table.rows, 32))) if table.rows else 0.0


def mean_bytes(rows: pa.Table) -> float:
    """The bytes of a row in memory, which are about those on disk."""
    return rows.nbytes / max(1, rows.num_rows)


def spread(rows: int, count: int) -> np.ndarray:
    """At most `count` positions among so many rows, evenly apart."""
    return np.arange(0, rows, max(1, rows // count))[:count]


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e6:,.1f} MB"


def _place(store: Store) -> str:
    """The folder whose disk it is: of an object store's builds, only scratch lies on one."""
    return str(store.local or tempfile.gettempdir())


def _free(store: Store) -> int:
    return shutil.disk_usage(_there(Path(_place(store)))).free


def _there(folder: Path) -> Path:
    """The folder, or what is there of the way to it."""
    return next(place for place in (folder, *folder.parents) if place.exists())
