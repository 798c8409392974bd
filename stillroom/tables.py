"""Tables as operators and trainers read them: named columns, heavy values resolved, memory bounded."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stillroom.fields import heavy_kind, light_names

if TYPE_CHECKING:
    import polars as pl
    import torch

__all__ = ["BaseTable", "MemoryTable", "one_array"]


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; Arrow raises where its text or bytes exceed 2 GiB."""
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


class BaseTable:
    """What every table derives from `take`: a subclass gives `schema`, `rows`, `take` and `scan`."""

    schema: pa.Schema
    rows: int

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows at these positions, in the order given."""
        raise NotImplementedError

    def scan(self, columns: Sequence[str] | None = None, batch_size: int = 1024, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Read rows start to stop in order, `batch_size` at a time (the last may be shorter)."""
        stop = self.rows if stop is None else min(stop, self.rows)
        for first in range(start, stop, batch_size):
            rows = np.arange(first, min(first + batch_size, stop))
            taken = self.take(rows, columns)
            yield pa.RecordBatch.from_arrays([one_array(column) for column in taken.columns], schema=taken.schema)

    def frame(self, columns: Sequence[str] | None = None) -> "pl.DataFrame":
        """Light columns of all rows as a Polars frame."""
        import polars as pl

        names = list(columns) if columns is not None else light_names(self.schema)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pl.DataFrame(pa.Table.from_batches(self.scan(names, batch_size=65536), schema))

    def vectors(self, column: str) -> np.ndarray:
        """A vector column of all rows, [N, D]."""
        field = self.schema.field(column)
        table = pa.Table.from_batches(self.scan([column], batch_size=4096), pa.schema([field]))
        flat = one_array(table[column]).flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(self.rows, field.type.list_size)

    def torch(self, columns: Sequence[str]) -> "dict[str, torch.Tensor]":
        """Columns of all rows as tensors: images decoded to uint8 [N, C, H, W], numbers as they are."""
        import torch

        return {name: torch.from_numpy(self._array(name)) for name in columns}

    def _array(self, name: str) -> np.ndarray:
        field = self.schema.field(name)
        if heavy_kind(field) == "vector":
            return self.vectors(name)
        if heavy_kind(field) == "image":
            from stillroom.images import decode_batch

            parts = [decode_batch(batch.column(0)) for batch in self.scan([name], batch_size=256)]
            return np.concatenate(parts) if parts else np.zeros((0, 1, 1, 1), np.uint8)
        return self.frame([name])[name].to_numpy().copy()


class MemoryTable(BaseTable):
    """A table held in memory: for `stillroom.apply`, notebooks and tests."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.schema, self.rows = table.combine_chunks(), table.schema, table.num_rows

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows at these positions, in the order given."""
        chosen: Any = self.table if columns is None else self.table.select(list(columns))
        return chosen.take(pa.array(np.asarray(rows, np.int64)))
