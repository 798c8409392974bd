"""Where a damaged table is damaged: its columns, block by block, against the digests of what was written."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import pyarrow as pa

from stillroom.digests import BLOCK_ROWS, block_digest
from stillroom.fields import heavy_kind
from stillroom.records import TableRef
from stillroom.stored import StoredTable, hashes
from stillroom.stores import Store

__all__ = ["damaged_columns", "fragment_of"]


def damaged_columns(store: Store, ref: TableRef, leaves: dict[str, list[str]], rows: tuple[int, int] | None = None) -> tuple[str, ...]:
    """The columns of a table that don't read as they were written.

    Lance may panic or end the process on damaged files, so a process of its own reads them.

    Args:
        store, ref: the table's version.
        leaves: digests of its blocks of 4,096 rows, by column, as they were written.
        rows: look only at the blocks that hold rows of this range; None looks at all.

    Returns:
        Names of columns; ("?",) where reading ended the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(_compare, store.uri, ref, leaves, rows).result()
        except BrokenProcessPool:
            return ("?",)


def fragment_of(store: Store, ref: TableRef, key: str) -> tuple[int, int, int] | None:
    """Which fragment a data file belongs to: its number, and the range of its rows; None where the version can't be read."""
    try:
        start = 0
        for number, fragment in enumerate(StoredTable(store, ref).dataset.get_fragments()):
            rows = fragment.physical_rows
            if any(key.endswith(f"/{file.path}") for file in fragment.data_files()):
                return number, start, start + rows
            start += rows
    except (OSError, ValueError, RuntimeError):
        return None
    return None


def _compare(uri: str, ref: TableRef, leaves: dict[str, list[str]], rows: tuple[int, int] | None) -> tuple[str, ...]:
    table = StoredTable(Store(uri), ref)
    first, last = rows or (0, table.rows)
    start, stop = first - first % BLOCK_ROWS, min(table.rows, -(-last // BLOCK_ROWS) * BLOCK_ROWS)
    return tuple(field.name for field in table.schema if not _is_whole(table, field, leaves, start, stop))


def _is_whole(table: StoredTable, field: pa.Field, leaves: dict[str, list[str]], start: int, stop: int) -> bool:
    """Whether a column reads as it was written; a heavy value, here or where it refers to, must be what its hash says."""
    try:
        if not heavy_kind(field):
            blocks = table.scan([field.name], BLOCK_ROWS, start, stop)
            wanted = leaves.get(field.name, [])[start // BLOCK_ROWS :]
            return all(block_digest(pa.chunked_array([block.column(0)])) == leaf for block, leaf in zip(blocks, wanted, strict=False))
        batches = table.scan([field.name, f"{field.name}_hash"], 256, start, stop)
        return all(hashes(batch[field.name]).equals(batch[f"{field.name}_hash"]) for batch in batches)
    except BaseException as error:  # Lance's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return False
