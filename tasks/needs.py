"""Needs: how many bytes of disk a stage will take, about, from what comes in and what it adds."""

import os
from pathlib import Path

import pyarrow as pa

from stillroom.errors import StoreError
from stillroom.fields import heavy_kind, heavy_names
from stillroom.operators import Operator, Params
from stillroom.records import TableRef
from stillroom.stored import AT_TYPE, StoredTable, table_bytes, with_hashes
from stillroom.stores import Store
from storage.space import SMALL_BYTES, mean_bytes, spread
from tasks.lines import frame_columns
from tasks.rows import references
from tasks.specs import StageSpec

__all__ = ["bytes_needed"]

SAMPLED_ROWS = 256
# Of a value whose type doesn't tell its size.
TEXT_BYTES, LIST_ITEMS, HEAVY_BYTES = 32, 16, 16384
# A reference, and what is written of a row that leaves: mostly the same words again and again.
PLACE_BYTES, REMOVED_BYTES = 16, 64
# What an estimate may be out by.
MARGIN = 1.2


def bytes_needed(spec: StageSpec, operator: Operator) -> int:
    """The disk that a stage takes until its record is there: its table, rows that leave, unfinished work, scratch.

    Rows that may be dropped count as kept. What rows and types don't tell (models, what a generator draws) is
    taken to be as large as in the last build. What an earlier, stopped build has finished is taken off.
    """
    store = Store(spec.store)
    if store.local is None:
        return 0
    params = operator.params.model_validate(spec.params)
    inputs = {name: StoredTable(store, ref) for name, ref in spec.inputs.items()}
    if operator.shape in ("row", "select", "score"):
        needed = _rows_bytes(operator, params, inputs)
    else:
        needed = _source_bytes(params) or _last_bytes(store, spec.table)
    if operator.shape in ("train", "score", "measure"):
        needed += _pixel_bytes(params, inputs)
    return max(0, int(MARGIN * needed) - _done_bytes(store, spec.work)) + SMALL_BYTES


def _rows_bytes(operator: Operator, params: Params, inputs: dict[str, StoredTable]) -> int:
    """Rows that go through: what they carry, what is added, and for a select its light columns and vectors in files."""
    flowing = {name: table for name, table in inputs.items() if _flows(operator, name)}
    if operator.shape != "select":
        flowing = dict(list(flowing.items())[:1])
    added = operator.added(params, {name: table.schema for name, table in inputs.items()})
    makes_heavy = any(heavy_kind(field) for field in added.values())
    heavy = max((_heavy_bytes(table) for table in flowing.values() if makes_heavy), default=HEAVY_BYTES)
    width = sum(_width(field.type, heavy) for field in with_hashes(pa.schema(added.values())))
    # A score's columns wait in its work, then stand in a table of their own, then beside the rows.
    copies = 3 if operator.shape == "score" else 1
    total = 0
    for name, table in flowing.items():
        total += int(table.rows * (_carried_bytes(table) + copies * width + REMOVED_BYTES))
        declared = operator.inputs.get(name) or operator.inputs["*"]
        total += sum(table.rows * _width(table.schema.field(column).type, heavy) for column in declared.vector_columns(params))
        if operator.shape == "select":
            total += int(table.rows * mean_bytes(_sampled(table).select(frame_columns(declared, params, table.schema))))
    return total


def _flows(operator: Operator, name: str) -> bool:
    declared = operator.inputs.get(name) or operator.inputs["*"]
    return declared.kind == "samples" and not declared.reference


def _carried_bytes(table: StoredTable) -> float:
    """What one row of an input takes in the next stage's table: light values, and a hash and a place for each heavy one."""
    rows = _sampled(table)
    light = rows.select([field.name for field in rows.schema if field.type != AT_TYPE])
    return mean_bytes(light) + PLACE_BYTES * (rows.num_columns - light.num_columns)


def _sampled(table: StoredTable) -> pa.Table:
    """Rows from all over a table, as a next stage would store them."""
    # A split's own rows would have to be looked up first.
    return references(table.whole, spread(table.whole.rows, SAMPLED_ROWS))


def _heavy_bytes(table: StoredTable) -> int:
    """The size of a picture, text or the like among the rows, for those that an operator makes."""
    names = [name for name in heavy_names(table.schema) if heavy_kind(table.schema.field(name)) != "vector"]
    if not table.whole.rows or not names:
        return HEAVY_BYTES
    return int(mean_bytes(table.whole.take(spread(table.whole.rows, 16), names[:1])))


def _width(kind: pa.DataType, heavy: int) -> int:
    """Bytes of one value of a type."""
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type, heavy)
    if pa.types.is_struct(kind):
        return sum(_width(field.type, heavy) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return LIST_ITEMS * _width(kind.value_type, heavy)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return heavy
    try:
        return -(-kind.bit_width // 8)
    except ValueError:
        return TEXT_BYTES


def _pixel_bytes(params: Params, inputs: dict[str, StoredTable]) -> int:
    """Decoded pictures, which lie in scratch while a network reads them: three channels of the side that the parameters name."""
    side = getattr(params, "side_px", None)
    if not isinstance(side, int):
        return 0
    return sum(table.rows * 3 * side * side for table in inputs.values() if "image" in table.schema.names)


def _source_bytes(params: Params) -> int:
    """The size of the files that a source reads: it stores them once."""
    paths = [value for name in type(params).model_fields if isinstance(value := getattr(params, name), Path)]
    return sum(_size(path) for path in paths)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for folder, _, _ in os.walk(path) for entry in os.scandir(folder) if entry.is_file())


def _last_bytes(store: Store, name: str) -> int:
    """The size of the newest version of a stage's table; 0 where there is none."""
    import lance

    try:
        return table_bytes(store, TableRef(name, lance.dataset(store.table_uri(name)).version, -1, ""))
    except (OSError, ValueError, StoreError):
        return 0


def _done_bytes(store: Store, work: str) -> int:
    """What finished partitions and units of an earlier, stopped build take already."""
    notes = [store.read_json(key) or {} for key in store.list(f"{work}/") if key.endswith(".json")]
    return sum(int(facts[0]) for note in notes for facts in note.get("files", {}).values())
