"""Digests of what tables hold, independent of layout: fragments, encodings, offsets and slices don't count.

A column is hashed in blocks of 4,096 rows (its leaves); the root is a hash of the leaves, and a
table's digest a hash of its columns' names, types, meanings and roots. The leaves are kept, so
that a difference can be placed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.tables import one_array

__all__ = ["BLOCK_ROWS", "TableDigest", "block_digest", "bytes_digest", "canonical_json", "column_roots", "json_digest"]

BLOCK_ROWS = 4096


def canonical_json(value: object) -> bytes:
    """`value` as JSON with sorted keys and no spaces: 1, 1.0 and "1" stay different; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def json_digest(value: object) -> str:
    """The digest of canonical JSON, 64 hex characters."""
    return blake3(canonical_json(value)).hexdigest()


def bytes_digest(value: bytes) -> bytes:
    """The 16-byte digest of a heavy value, as stored in its `…_hash` column."""
    return blake3(value).digest(length=16)


def column_roots(leaves: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The root of each column from its leaves."""
    return {name: blake3("".join(of_column).encode()).hexdigest() for name, of_column in leaves.items()}


def block_digest(values: pa.ChunkedArray) -> str:
    """The leaf of a column's block: at most `BLOCK_ROWS` values."""
    hasher = blake3()
    for piece in _canonical(one_array(values)):
        hasher.update(piece)
    return hasher.hexdigest()


class TableDigest:
    """The digest of a table, computed while its rows go by.

    Args:
        schema: the columns that count.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.leaves: dict[str, list[str]] = {name: [] for name in schema.names}
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in the next rows."""
        self._pending.append(batch.select(self.schema.names))
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._pending_rows >= BLOCK_ROWS:
            self._flush(whole_blocks=True)

    def columns(self) -> dict[str, str]:
        """The root of each column by name; call it once all rows are in."""
        self._flush(whole_blocks=False)
        return column_roots(self.leaves)

    def hexdigest(self) -> str:
        """The table's digest, 64 hex characters; the order of columns doesn't count."""
        roots = self.columns()
        described = [[field.name, _type_name(field.type), _meaning(field), roots[field.name]] for field in self.schema]
        return json_digest({"rows": self.rows, "columns": sorted(described)})

    def _flush(self, *, whole_blocks: bool) -> None:
        table = pa.Table.from_batches(self._pending) if self._pending else None
        if table is None or not table.num_rows:
            return
        stop = table.num_rows // BLOCK_ROWS * BLOCK_ROWS if whole_blocks else table.num_rows
        for start in range(0, stop, BLOCK_ROWS):
            block = table.slice(start, min(BLOCK_ROWS, stop - start))
            for name in self.schema.names:
                self.leaves[name].append(block_digest(block[name]))
        self._pending = table.slice(stop).to_batches()
        self._pending_rows = table.num_rows - stop


def _canonical(array: pa.Array) -> Iterator[bytes]:
    """The bytes that decide whether two arrays are equal: validity, then the valid values alone."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    yield f"{len(array)};".encode()
    if array.null_count:
        yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes()
        array = array.drop_null()
    kind = array.type
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _canonical(array.field(index) if not array.offset else array.flatten()[index])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield array.value_lengths().cast(pa.int64()).to_numpy().tobytes()
        yield from _canonical(array.flatten())
    elif pa.types.is_fixed_size_list(kind):
        yield from _canonical(array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        offsets_type = np.int64 if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else np.int32
        offsets = np.frombuffer(array.buffers()[1], offsets_type)[array.offset : array.offset + len(array) + 1] if len(array) else np.zeros(1, offsets_type)
        yield np.diff(offsets).astype(np.int64).tobytes()
        data = array.buffers()[2]
        yield b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])].tobytes()
    elif pa.types.is_boolean(kind):
        yield np.packbits(array.to_numpy(zero_copy_only=False)).tobytes()
    elif pa.types.is_null(kind):
        return
    else:
        width = kind.bit_width // 8
        data = array.buffers()[1]
        yield b"" if data is None else memoryview(data)[array.offset * width : (array.offset + len(array)) * width].tobytes()


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _type_name(kind.value_type)
    return str(kind).replace("large_", "")


def _meaning(field: pa.Field) -> dict[str, str]:
    metadata = field.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"stillroom.") and key != b"stillroom.heavy"}
