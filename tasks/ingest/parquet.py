"""ingest.parquet: a Parquet file, or all Parquet files below a folder."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.images import MAX_PIXELS
from stillroom.operators import Params, Rows, SourcePath, Unit, source
from stillroom.stored import own_columns
from tasks.ingest._columns import Role, Roles, assign, class_names, fields_of, id_column, plain, unified
from tasks.ingest._rows import Origin, parts, repeated, rows_of
from tasks.ingest._samples import ClassNames, readable, reading, signature

# Images are decoded as they come, so few rows at a time are enough.
_IMAGE_ROWS, _LIGHT_ROWS = 128, 4096
UNREADABLE = "can't be read as Parquet"


class ParquetParams(Params):
    """Parameters of `ingest.parquet`."""

    path: SourcePath = Field(description="A Parquet file, or a folder: all *.parquet below it, in the order of their paths.")
    columns: dict[Role, str] | None = Field(None, description="Column by role: image, label, text, group, split, source; a column called like a role plays it.")
    classes: ClassNames | None = Field(None, description="Class names in index order; default: the file's own (ClassLabel), else those found.")
    id: str = Field(
        "content",
        pattern="^(content|row|column:.+)$",
        description="sample_id: content (hash of the image's bytes, else of the text), row (file:row), or column:NAME.",
    )
    max_pixels: int = Field(MAX_PIXELS, gt=0, description="Reject images of more pixels, by their header.")
    shard_rows: int = Field(8192, gt=0, description="Rows a unit of work; no result depends on it.")


def _adds(params: ParquetParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    files = _files(params.path)
    schema = unified((readable(name), _schema(params.path, name)) for name in files)
    roles = assign(str(params.path), schema, params.columns, params.id)
    values = _column(params.path, files, roles.columns.get("label", ""))
    return fields_of(schema, roles, class_names(str(params.path), schema, roles, params.classes, values))


def _units(params: ParquetParams) -> list[Unit]:
    files = _files(params.path)
    schema = unified((readable(name), _schema(params.path, name)) for name in files)
    roles = assign(str(params.path), schema, params.columns, params.id)
    key = id_column(params.id)
    duplicates = repeated([(readable(name), partial(_column, params.path, [name], key)) for name in files]) if key else {}
    units = []
    for index, name in enumerate(files):
        rows = _opened(params.path, name).metadata.num_rows
        for start in range(0, rows, params.shard_rows):
            stop = min(start + params.shard_rows, rows)
            known = [[row, place] for row, place in duplicates.get(readable(name), []) if start <= row < stop]
            value = {"file": quote(name, errors="surrogateescape"), "columns": dict(roles.columns), "passing": list(roles.passing), "duplicates": known}
            units.append(Unit(f"{index}-{start}", start, stop, value, key=signature(params.path, [name], start, stop, value)))
    return units


@source(version=1, units=_units, adds=_adds)
def parquet(unit: Unit, params: ParquetParams, schema: pa.Schema) -> Iterator[Rows]:
    """Read Parquet files: columns by role, images checked and kept encoded, all other columns passed through.

    One schema holds for all files: the union of their columns, with what one file lacks null, large and
    view types as plain ones. An image is bytes or the datasets library's struct<bytes, path>; one that
    isn't plain (the policy of `stillroom.images`) is stored as an upright PNG. A label is an index into
    the classes, or text that is looked up there. Rejected with the reason and the row: a broken image,
    a label or split out of range or null, and, with `id: column:NAME`, an id that is null or stood in
    an earlier row.

    Raises:
        InputError: no such file, no Parquet, columns that don't fit their roles or change type.
    """
    schema = own_columns(schema)
    name = unquote(unit.value["file"], errors="surrogateescape")
    roles = Roles(unit.value["columns"], tuple(unit.value["passing"]), params.id)
    origin = Origin(readable(name), dict(unit.value["duplicates"]), max_pixels=params.max_pixels)
    wanted = [*roles.columns.values(), *roles.passing, *([key] if (key := id_column(params.id)) else [])]
    file = _opened(params.path, name)
    here = [column for column in dict.fromkeys(wanted) if column in file.schema_arrow.names]
    for first_row, batch in _read(file, _shown(params.path, name), unit, here, "image" in roles.columns):
        for part in parts(batch):
            yield rows_of(part, first_row, origin, roles, schema)
            first_row += part.num_rows


def _read(file: Any, where: str, unit: Unit, columns: list[str], images: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows start to stop of a file, with the number of each batch's first row."""
    groups, begins, begin = [], [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if begin < unit.stop and begin + rows > unit.start:
            groups.append(group)
            begins.append(begin)
        begin += rows
    position = begins[0] if begins else 0
    # A range inside a row group is found by reading past what stands before it.
    with reading(where, UNREADABLE):
        for batch in file.iter_batches(_IMAGE_ROWS if images else _LIGHT_ROWS, row_groups=groups, columns=columns):
            first, stop = max(unit.start - position, 0), min(unit.stop - position, batch.num_rows)
            if first < stop:
                yield position + first, batch.slice(first, stop - first)
            position += batch.num_rows
            if position >= unit.stop:
                return


def _files(path: Path) -> list[str]:
    """Names below the path, in order; a file alone is called by its own name."""
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*.parquet") if file.is_file()]
        names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
        if not names:
            raise InputError(str(path), "holds no *.parquet files")
        return names
    if not path.exists():
        raise InputError(str(path), "no such file or folder")
    return [path.name]


def _opened(path: Path, name: str) -> Any:
    """The file of that name as a `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet as pq

    with reading(_shown(path, name), UNREADABLE):
        return pq.ParquetFile(_place(path, name))


def _place(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _shown(path: Path, name: str) -> str:
    return readable(str(_place(path, name)))


def _schema(path: Path, name: str) -> pa.Schema:
    with reading(_shown(path, name), UNREADABLE):
        return _opened(path, name).schema_arrow


def _column(path: Path, files: list[str], column: str) -> Iterator[pa.Array]:
    """One column of all files in its plain type, batch by batch, where they have it."""
    for name in files:
        file = _opened(path, name)
        if column in file.schema_arrow.names:
            with reading(_shown(path, name), UNREADABLE):
                yield from (batch.column(0).cast(plain(batch.column(0).type)) for batch in file.iter_batches(65_536, columns=[column]))
