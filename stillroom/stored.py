"""Tables in a store: one version of a Lance table, with heavy values resolved to where they are.

A heavy value is stored once, in the table whose stage made it, beside `NAME_hash` (what it is).
Elsewhere a table has `NAME_hash` and `NAME_at` (where it is): readers see `NAME` either way.
"""

import os
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stillroom.digests import bytes_digest
from stillroom.errors import InputError, StoreError
from stillroom.fields import heavy_kind, heavy_names
from stillroom.records import TableRef, read_record
from stillroom.remote import ask
from stillroom.scratch import memory_map, scratch_folder
from stillroom.stores import Store
from stillroom.tables import BaseTable, one_array

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "AT_TYPE",
    "HASH_TYPE",
    "SCAN",
    "StoredTable",
    "at_field",
    "hash_field",
    "hashes",
    "logical_schema",
    "open_table",
    "own_columns",
    "physical_schema",
    "snapshot_fields",
    "table_bytes",
    "with_hashes",
]

HASH_TYPE = pa.binary(16)
AT_TYPE = pa.struct([pa.field("origin", pa.string()), pa.field("row", pa.int64())])
# Lance's own defaults read ahead by hundreds of MB; with these a scan holds about one batch.
SCAN = {"batch_readahead": 1, "fragment_readahead": 1, "io_buffer_size": 8 << 20}
FIELD = b"stillroom.field"
# Of light columns on their way into a frame.
BATCH_ROWS = 65_536


def hash_field(name: str) -> pa.Field:
    """The light column that says what a heavy value is."""
    return pa.field(f"{name}_hash", HASH_TYPE)


def at_field(field: pa.Field) -> pa.Field:
    """The light column that says where a heavy value is; it carries the heavy field's own type and meaning."""
    described = b64encode(pa.schema([field]).serialize().to_pybytes())
    return pa.field(f"{field.name}_at", AT_TYPE, metadata={FIELD: described})


def logical_schema(physical: pa.Schema) -> pa.Schema:
    """What readers see of a stored schema: references stand as the heavy columns that they point to."""
    fields = []
    for field in physical:
        described = (field.metadata or {}).get(FIELD)
        fields.append(pa.ipc.read_schema(pa.py_buffer(b64decode(described))).field(0) if described else field)
    return pa.schema(fields)


def physical_schema(logical: pa.Schema, made_here: Sequence[str]) -> pa.Schema:
    """How a table stores a logical schema: the heavy columns made here as they are, the others as references."""
    fields = []
    for field in logical:
        if not heavy_kind(field) or field.name in made_here:
            fields.append(field)
        else:
            fields.append(at_field(field))
    return pa.schema(fields)


def with_hashes(schema: pa.Schema) -> pa.Schema:
    """A logical schema with the `…_hash` column beside each heavy one."""
    names = set(schema.names)
    fields: list[pa.Field] = []
    for field in schema:
        fields.append(field)
        if heavy_kind(field) and f"{field.name}_hash" not in names:
            fields.append(hash_field(field.name))
    return pa.schema(fields)


def own_columns(schema: pa.Schema) -> pa.Schema:
    """The columns of a logical schema that a stage makes itself: the `…_hash` columns are the engine's."""
    made = {f"{name}_hash" for name in heavy_names(schema)}
    return pa.schema([field for field in schema if field.name not in made])


def snapshot_fields(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of a snapshot's table: those of all its splits, heavy values among them."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, field)
    fields["split"] = pa.field("split", pa.string())
    return pa.schema(fields.values())


def hashes(values: pa.Array) -> pa.Array:
    """The `…_hash` column of a heavy column; null for null. Vectors are hashed by their little-endian bytes."""
    if pa.types.is_fixed_size_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
        found = iter(flat)
        return pa.array([bytes_digest(np.ascontiguousarray(next(found)).tobytes()) if valid else None for valid in values.is_valid().to_pylist()], HASH_TYPE)
    return pa.array([None if value is None else bytes_digest(value) for value in values.to_pylist()], HASH_TYPE)


def open_table(store: Store, ref: TableRef | Mapping[str, Any]) -> "StoredTable":
    """Open a table by its reference, or by a mapping with `name` and `version` as a manifest has them."""
    if not isinstance(ref, TableRef):
        ref = TableRef(ref["name"], ref["version"], ref.get("rows", -1), ref.get("fingerprint", ""))
    return StoredTable(store, ref)


# The process that first read from Lance; a child that was forked from it later must not.
_first_read = [0]


def table_bytes(store: Store, ref: TableRef) -> int:
    """The size in bytes of one version's data files."""
    files = [file for fragment in _open(store, ref.name, ref.version).get_fragments() for file in fragment.data_files()]
    return sum(int(file.file_size_bytes or 0) for file in files)


class StoredTable(BaseTable):
    """One version of a table in a store; Lance is opened at the first read, in each process.

    Args:
        store: where it is.
        ref: which version; with a split, only the rows of that split, in their order.

    Raises:
        StoreError: at the first read, if the version or a heavy value's origin isn't there.
    """

    def __init__(self, store: Store, ref: TableRef) -> None:
        self.store, self.ref = store, ref
        self._opened: dict[str, Any] = {}
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "ref": self.ref, "_opened": {}, "_pid": 0}

    @property
    def schema(self) -> pa.Schema:  # type: ignore[override]
        """The logical schema."""
        if "schema" not in self._opened:
            self._opened["schema"] = logical_schema(self.dataset.schema)
        return self._opened["schema"]

    @property
    def rows(self) -> int:  # type: ignore[override]
        """How many rows there are, of the split if one is asked for."""
        if self.ref.split is None:
            return self.ref.rows if self.ref.rows >= 0 else self.dataset.count_rows()
        if "rows" not in self._opened:
            chosen = "split = '" + self.ref.split.replace("'", "''") + "'"
            self._opened["rows"] = ask(self.store.uri, lambda: self.dataset.count_rows(filter=chosen))
        return self._opened["rows"]

    @property
    def whole(self) -> "StoredTable":
        """The same version with the rows of all splits."""
        return StoredTable(self.store, replace(self.ref, split=None))

    @property
    def dataset(self) -> Any:
        """The Lance dataset of this version."""
        if self._pid not in (0, os.getpid()) or _first_read[0] not in (0, os.getpid()):
            raise StoreError(
                f"table '{self.ref.name}'",
                "was read before this process was forked, and Lance isn't fork-safe",
                "use `snapshot.loader(…)`, or DataLoader(multiprocessing_context='forkserver')",
            )
        if "dataset" not in self._opened:
            self._pid = _first_read[0] = os.getpid()
            self._opened["dataset"] = _open(self.store, self.ref.name, self.ref.version)
        return self._opened["dataset"]

    @property
    def positions(self) -> np.ndarray:
        """Positions in the whole table of this view's rows, int64."""
        if "positions" not in self._opened:
            self._opened["positions"] = np.arange(self.rows) if self.ref.split is None else _of_split(self.store.uri, self.ref)
        return self._opened["positions"]

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows at these positions, in the order given, heavy values resolved."""
        names = list(columns) if columns is not None else self.schema.names
        table = self.take_stored(rows, [self._stored(name) for name in names])
        arrays = [self._resolve(self.schema.field(name), table[self._stored(name)]) for name in names]
        return pa.Table.from_arrays(arrays, schema=pa.schema([self.schema.field(name) for name in names]))

    def take_stored(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Read rows as they are stored: references stay references."""
        positions = np.asarray(rows, np.int64)
        if self.ref.split is not None:
            positions = self.positions[positions]
        if not len(positions):
            return self.dataset.schema.empty_table().select(list(columns))
        return ask(self.store.uri, lambda: self.dataset.take(positions, columns=list(columns)))

    def frame(self, columns: Sequence[str] | None = None) -> "pl.DataFrame":
        """Light columns of all rows as a Polars frame, memory-mapped from a file that goes when the frame goes."""
        import polars as pl

        names = list(columns) if columns is not None else [f.name for f in self.schema if not heavy_kind(f)]
        if set(names) & set(heavy_names(self.schema)):
            return super().frame(names)
        schema = pa.schema([pa.field(name, _viewed(self.schema.field(name).type)) for name in names])
        with tempfile.NamedTemporaryFile(suffix=".frame", dir=scratch_folder(self.store)) as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in self._stream(names):
                    writer.write_batch(batch.cast(schema))
            file.flush()
            with pa.memory_map(file.name) as mapped:
                frame = pl.from_arrow(pa.ipc.open_file(mapped).read_all(), rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def vectors(self, column: str) -> np.ndarray:
        """A vector column of all rows, [N, D], memory-mapped from a file that goes when the array goes.

        Raises:
            InputError: a row has no vector.
        """
        field = self.schema.field(column)
        shape = (self.rows, field.type.list_size)
        with tempfile.NamedTemporaryFile(suffix=".vectors", dir=scratch_folder(self.store)) as file:
            array = memory_map(Path(file.name), shape, field.type.value_type.to_pandas_dtype())
            start = 0
            for batch in self.scan([column], batch_size=4096):
                if missing := batch.column(0).null_count:
                    problem = f"has no vector in {missing} of rows {start} to {start + batch.num_rows - 1} of table '{self.ref.name}'"
                    raise InputError(f"column '{column}'", problem, "let score.embed come after the rows are mixed")
                flat = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, shape[1])
                array[start : start + len(flat)] = flat
                start += len(flat)
        return array

    def origin(self, name: str) -> str | None:
        """`<table>/<fingerprint>` where this table itself holds the heavy column, else None."""
        return f"{self.ref.name}/{self.ref.fingerprint}" if name in self.dataset.schema.names else None

    def _stream(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Light columns of all rows, as Lance hands them out."""
        names = list(dict.fromkeys([*columns, *(["split"] if self.ref.split is not None else [])]))
        batches = iter(ask(self.store.uri, lambda: self.dataset.scanner(columns=names, batch_size=BATCH_ROWS, **SCAN).to_batches()))
        while (batch := ask(self.store.uri, lambda: next(batches, None))) is not None:
            if self.ref.split is not None:
                batch = batch.filter(_in_split(batch, self.ref))
            yield batch.select(list(columns))

    def _stored(self, name: str) -> str:
        return name if name in self.dataset.schema.names else f"{name}_at"

    def _resolve(self, field: pa.Field, column: pa.ChunkedArray) -> pa.Array:
        values = one_array(column)
        if values.type != AT_TYPE or not heavy_kind(field):
            return values.cast(field.type) if values.type != field.type else values
        import pyarrow.compute as pc

        origins, rows = values.field(0), values.field(1)
        at = rows.to_numpy(zero_copy_only=False)
        parts, order = [], []
        for origin in pc.unique(origins).to_pylist():
            where = (
                np.flatnonzero(pc.equal(origins, origin).to_numpy(zero_copy_only=False))
                if origin is not None
                else np.flatnonzero(origins.is_null().to_numpy(zero_copy_only=False))
            )
            order.append(where)
            parts.append(pa.nulls(len(where), field.type) if origin is None else self._fetch(origin, field, at[where].astype(np.int64)))
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
        return pa.concat_arrays(parts).take(pa.array(back)) if parts else pa.array([], field.type)

    def _fetch(self, origin: str, field: pa.Field, rows: np.ndarray) -> pa.Array:
        if origin not in self._opened:
            name, fingerprint = origin.rsplit("/", 1)
            record = read_record(self.store, fingerprint)
            if record is None:
                raise StoreError(
                    f"table '{self.ref.name}'",
                    f"its column '{field.name}' is stored in '{name}', whose record {fingerprint[:12]} is missing",
                    "build the recipe again",
                )
            self._opened[origin] = _open(self.store, record.table.name, record.table.version)
        values = one_array(ask(self.store.uri, lambda: self._opened[origin].take(rows, columns=[field.name])[field.name]))
        return values.cast(field.type) if values.type != field.type else values


@lru_cache(maxsize=2)  # each partition of a row operator asks for those of its input
def _of_split(store: str, ref: TableRef) -> np.ndarray:
    """Positions of a split's rows in the whole table, int64."""
    found, first = [np.zeros(0, np.int64)], 0
    for batch in StoredTable(Store(store), ref).whole._stream(["split"]):
        found.append(first + np.flatnonzero(_in_split(batch, ref).to_numpy(zero_copy_only=False)))
        first += batch.num_rows
    return np.concatenate(found)


def _in_split(batch: pa.RecordBatch, ref: TableRef) -> pa.Array:
    """Whether each row is in the split that a reference asks for."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(batch["split"], ref.split), False)


def _viewed(kind: pa.DataType) -> pa.DataType:
    """The type as which Polars holds a column: text in that form is taken over without a copy."""
    if pa.types.is_string(kind):
        return pa.string_view()
    return pa.binary_view() if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) else kind


def _open(store: Store, name: str, version: int) -> Any:
    import lance

    try:
        # Lance says ValueError to a server that is out of reach as well.
        return ask(store.uri, lambda: lance.dataset(store.table_uri(name), version=version))
    except ValueError as error:
        raise StoreError(f"table '{name}'", f"version {version} is not in {store.uri}", "`stillroom build` makes it again") from error
