"""Blocks of a bucket's rows on the local disk, so that a second epoch reads them from there.

A block is what an order keeps together (256 neighbouring rows of a split), as one Arrow file. Processes of a machine
share the folder and need no lock: a file is written beside its place and renamed, holds what its name says
whoever wrote it, and one that another process removed is read from the bucket again.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stillroom.digests import json_digest
from stillroom.order import BLOCK_ROWS
from stillroom.stored import StoredTable
from stillroom.tables import BaseTable, one_array

__all__ = ["CACHE_BYTES", "CachedTable", "cache_folder"]

CACHE_BYTES = 4 << 30
# What is read from the bucket at once; a block at least.
_TAKE_BYTES, _TAKE_BLOCKS = 32 << 20, 16
# How often the folder is looked through: each time a process has written such a part of the limit.
_PARTS = 32


def cache_folder() -> Path:
    """Where blocks are kept unless told otherwise: `cache` below `STILLROOM_HOME`, which is `~/.stillroom` unless set."""
    return Path(os.environ.get("STILLROOM_HOME") or "~/.stillroom").expanduser().absolute() / "cache"


class CachedTable(BaseTable):
    """A stored table whose blocks stay in a folder once they were read; those used longest ago go first.

    Args:
        table: where the rows come from.
        digest: of what the table holds: equal ones share blocks.
        folder: for the blocks.
        limit_bytes: about how large the folder may become, by all processes and snapshots together.
    """

    def __init__(self, table: StoredTable, digest: str, folder: Path, limit_bytes: int) -> None:
        self.stored, self.digest, self.folder, self.limit_bytes = table, digest, folder, limit_bytes
        self._written, self._row_bytes = limit_bytes, 0

    @property
    def schema(self) -> pa.Schema:  # type: ignore[override]
        """The columns, heavy ones as themselves."""
        return self.stored.schema

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many there are."""
        return self.stored.rows

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows at these positions, in the order given."""
        names = list(columns) if columns is not None else self.schema.names
        schema = pa.schema([self.schema.field(name) for name in names])
        wanted = np.asarray(rows, np.int64)
        parts, order = [], []
        for block, table in self._blocks(np.unique(wanted // BLOCK_ROWS), names):
            here = np.flatnonzero(wanted // BLOCK_ROWS == block)
            # A copy of what is asked for: the rest of the block isn't held on to.
            parts.append(table.take(pa.array(wanted[here] - block * BLOCK_ROWS)))
            order.append(here)
        if not parts:
            return schema.empty_table()
        back = np.argsort(np.concatenate(order))
        return pa.concat_tables(parts).take(pa.array(back)).cast(schema)

    def _blocks(self, blocks: np.ndarray, names: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """These blocks, from the folder or else from the bucket, a few at a time."""
        folder = self.folder / json_digest([self.digest, *names])[:32]
        missing = []
        for block in blocks.tolist():
            table = _read(folder / f"{block}.arrow")
            if table is None:
                missing.append(block)
            else:
                yield block, table
        while missing:
            each = max(1, self._row_bytes * BLOCK_ROWS)
            count = max(1, min(_TAKE_BLOCKS, _TAKE_BYTES // each)) if self._row_bytes else 1
            some, missing = missing[:count], missing[count:]
            ranges = [np.arange(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self._rows())) for block in some]
            taken = self.stored.take(np.concatenate(ranges), names)
            self._row_bytes = max(1, taken.nbytes // taken.num_rows)
            start = 0
            for block, rows in zip(some, ranges, strict=True):
                table = pa.table([one_array(column) for column in taken.slice(start, len(rows)).columns], schema=taken.schema)
                start += len(rows)
                self._write(folder / f"{block}.arrow", table)
                yield block, table

    def _rows(self) -> int:
        return len(self.stored.positions)

    def _write(self, path: Path, table: pa.Table) -> None:
        """Put a block in its place, whole or not at all; a disk that is full keeps none."""
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                self._written += os.path.getsize(part)
                os.replace(part, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
                raise
            if self._written * _PARTS >= self.limit_bytes:
                self._written = 0
                _shrink(self.folder, self.limit_bytes)


def _read(path: Path) -> pa.Table | None:
    """A block of the folder, which counts as used now; None where it isn't there, or is damaged."""
    try:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        os.utime(path)
    except (OSError, pa.ArrowInvalid):
        return None
    return table


def _shrink(folder: Path, limit_bytes: int) -> None:
    """Remove files until so many bytes are left, those used longest ago first."""
    found = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            found.append((facts.st_mtime_ns, facts.st_size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if held <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        held -= size
