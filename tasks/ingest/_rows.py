"""Rows of other people's Arrow data as samples: images checked, labels counted, ids made, faults with their reason."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import MAX_PIXELS, ImageFault, as_stored
from stillroom.operators import Rows
from stillroom.repeats import hashed, met_twice
from tasks.ingest._columns import Roles, id_column, plain
from tasks.ingest._samples import SPLITS, content_id, rejecting

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Origin", "parts", "repeated", "rows_of"]

_PART_BYTES = 64 << 20
_MAX_IMAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Origin:
    """Where rows come from, and what is known of them there.

    Args:
        name: what `source` begins with: "name:row", where no column plays that role.
        duplicates: the rows whose id stood in an earlier row, and where that was.
        inside: the folder in which an image named by its path has to lie; None: paths aren't read.
    """

    name: str
    duplicates: Mapping[int, str] = field(default_factory=dict)
    inside: Path | None = None
    max_pixels: int = MAX_PIXELS


def parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch so that no part holds much more than 64 MiB."""
    rows = max(1, int(batch.num_rows * min(1.0, _PART_BYTES / max(batch.nbytes, 1))))
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def repeated(columns: Sequence[tuple[str, Callable[[], Iterable[pa.Array]]]]) -> dict[str, list[tuple[int, str]]]:
    """Find the ids that stood in an earlier row.

    Args:
        columns: the id column of each origin: its name, and what reads the values in their order, again if need be.

    Returns:
        By origin: rows whose id isn't new, and for each the place "origin:row" of the first with it.
    """
    import polars as pl

    twice = met_twice(hashed(ids.drop_nulls()) for _, read in columns for ids in _ids(read))
    first: dict[str, str] = {}
    found: dict[str, list[tuple[int, str]]] = {}
    for origin, read in columns if len(twice) else ():
        start = 0
        for ids in _ids(read):
            frame = pl.DataFrame({"id": ids}).with_row_index("row", offset=start)
            for row, id_ in frame.filter(ids.is_not_null() & pl.Series(np.isin(hashed(ids), twice))).iter_rows():
                place = f"{origin}:{row}"
                if first.setdefault(id_, place) != place:
                    found.setdefault(origin, []).append((row, first[id_]))
            start += len(ids)
    return found


def _ids(read: "Callable[[], Iterable[pa.Array]]") -> "Iterator[pl.Series]":
    import polars as pl

    return (pl.Series(_id_texts(part), dtype=pl.String) for part in read())


def rows_of(batch: pa.RecordBatch, first_row: int, origin: Origin, roles: Roles, schema: pa.Schema) -> Rows:
    """Make samples of a batch, whose first row has the number `first_row` in its origin.

    Args:
        batch: columns as they are in the source; what it lacks is null.
        schema: the samples' schema, as `fields_of` makes it.

    Raises:
        InputError: a value doesn't fit the type that its column has over all files.
    """
    import pyarrow.compute as pc

    cut = _Batch(batch, first_row, origin, roles)
    made = cut.made
    for role, name in roles.columns.items():
        if role == "image":
            cut.images(name)
        elif role == "label":
            cut.labels(name, label_names(schema) or [])
        elif role == "split":
            cut.splits(name)
        else:
            made[role] = cut.column(name, pa.string())
    cut.ids()
    made["source"] = pc.coalesce(made["source"], cut.places) if "source" in made else cut.places
    made |= {name: cut.column(name, schema.field(name).type) for name in roles.passing}
    columns = [made[field.name].cast(field.type) for field in schema]
    return Rows(pa.RecordBatch.from_arrays(columns, schema=schema), rejected=rejecting(cut.reasons))


class _Batch:
    """One batch on its way: the columns made so far, and the first reason found against each row."""

    def __init__(self, batch: pa.RecordBatch, first_row: int, origin: Origin, roles: Roles) -> None:
        self.batch, self.origin, self.roles = batch, origin, roles
        self.rows = range(first_row, first_row + batch.num_rows)
        self.places = pa.array([f"{origin.name}:{row}" for row in self.rows], pa.string())
        self.reasons: list[str | None] = [None] * batch.num_rows
        self.made: dict[str, pa.Array] = {}
        self.contents: list[str | None] = [None] * batch.num_rows

    def column(self, name: str, type_: pa.DataType | None = None) -> pa.Array:
        """A column of the source in its plain type or as `type_`; nulls where the source lacks it."""
        if name not in self.batch.schema.names:
            return pa.nulls(self.batch.num_rows, type_ or pa.null())
        values = self.batch.column(name)
        wanted = type_ or plain(values.type)
        try:
            return values.cast(wanted)
        except pa.ArrowInvalid as error:
            raise InputError(self.origin.name, f"column '{name}': {str(error).splitlines()[0]}", f"write it as {wanted} in all files") from error

    def reject(self, index: int, reason: str) -> None:
        if self.reasons[index] is None:
            self.reasons[index] = reason

    def images(self, name: str) -> None:
        """Check every image; those that aren't plain are stored as upright PNG."""
        types = {"image": pa.binary(), "width": pa.int32(), "height": pa.int32(), "format": pa.string()}
        stored: dict[str, list[Any]] = {key: [None] * self.batch.num_rows for key in types}
        for index, value in enumerate(self.column(name)):
            try:
                data = _bytes_of(value.as_py(), self.origin.inside)
                self.contents[index] = content_id(data)
                image = as_stored(data, max_pixels=self.origin.max_pixels)
            except ImageFault as fault:
                self.reject(index, str(fault))
                continue
            facts = image.facts
            for key, fact in zip(types, (image.data, facts.width, facts.height, facts.format), strict=True):
                stored[key][index] = fact
        self.made |= {key: pa.array(values, types[key]) for key, values in stored.items()}

    def labels(self, name: str, names: list[str]) -> None:
        """Labels in range, or the reason why not; text is looked up among the class names."""
        indices: list[int | None] = []
        positions = {name: index for index, name in enumerate(names)}
        for index, value in enumerate(self.column(name).to_pylist()):
            label = positions.get(value) if isinstance(value, str) else value
            if value is None:
                self.reject(index, "label is null")
            elif label is None:
                self.reject(index, f"label '{value}' is not in classes")
            elif not 0 <= label < len(names):
                self.reject(index, f"label {label} out of range ({len(names)} classes)")
                label = None
            indices.append(None if label is None else int(label))
        self.made["label"] = pa.array(indices, pa.int64())
        self.made["label_name"] = pa.array([None if label is None else names[label] for label in indices], pa.string())

    def splits(self, name: str) -> None:
        """Splits by the names that stillroom gives them."""
        given = self.column(name, pa.string()).to_pylist()
        for index, value in enumerate(given):
            if value not in SPLITS:
                self.reject(index, "split is null" if value is None else f"split '{value}' is none of train, validation, test")
        self.made["split"] = pa.array([SPLITS.get(value) for value in given], pa.string())

    def ids(self) -> None:
        """Ids that are never null; where there is none, the row's place stands in and the row is rejected."""
        import pyarrow.compute as pc

        if column := id_column(self.roles.id):
            ids = _id_texts(self.column(column))
            for index, (row, value) in enumerate(zip(self.rows, ids.to_pylist(), strict=True)):
                if value is None:
                    self.reject(index, f"id is null (row {row})")
                elif row in self.origin.duplicates:
                    self.reject(index, f"duplicate id '{value}' (row {row}; first at {self.origin.duplicates[row]})")
            self.made["sample_id"] = pc.coalesce(ids.cast(pa.string()), self.places)
            return
        if self.roles.id == "content" and "image" not in self.roles.columns:
            for index, text in enumerate(self.made["text"].to_pylist()):
                if text is None:
                    self.reject(index, "text is null")
                else:
                    self.contents[index] = content_id(text.encode())
        by_content = self.contents if self.roles.id == "content" else [None] * len(self.rows)
        self.made["sample_id"] = pc.coalesce(pa.array(by_content, pa.string()), self.places)


def _id_texts(values: pa.Array) -> pa.Array:
    """An id column as text: numbers as digits, bytes as hex; null stays null."""
    if pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
        return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _bytes_of(value: bytes | dict[str, Any] | None, inside: Path | None) -> bytes:
    """The encoded bytes of an image column's value."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return data
    if not path:
        raise ImageFault("no image")
    if inside is None:
        raise ImageFault(f"no image bytes, and the path '{path}' isn't part of the source")
    try:
        file = (inside / path).resolve()
        if not file.is_relative_to(inside.resolve()):
            raise ImageFault(f"the path '{path}' lies outside the source")
        if not file.is_file():
            raise ImageFault(f"the path '{path}' is no file")
        if (size_bytes := file.stat().st_size) > _MAX_IMAGE_BYTES:
            raise ImageFault(f"{size_bytes:,} bytes > limit {_MAX_IMAGE_BYTES:,}")
        return file.read_bytes()
    except ImageFault:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a zero byte, no right to read it
        raise ImageFault(f"the path '{path[:80]}' can't be read: {getattr(error, 'strerror', None) or error}") from error
