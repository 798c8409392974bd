"""ingest.idx: files of the MNIST family, gzipped or not."""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, label_names
from stillroom.images import MAX_PIXELS, encode_png
from stillroom.operators import Params, Rows, SourcePath, Unit, source
from tasks.ingest._samples import ClassNames, gather, pixels_id

_UNSIGNED_BYTES = 8
_SHARD_ROWS = 8192


class IdxParams(Params):
    """Parameters of `ingest.idx`."""

    images: SourcePath = Field(description="Images: unsigned bytes, three dimensions (rows, height, width).")
    labels: SourcePath = Field(description="Labels: unsigned bytes, one dimension.")
    test_images: SourcePath | None = Field(None, description="Images of the test split.")
    test_labels: SourcePath | None = Field(None, description="Labels of the test split.")
    classes: ClassNames | None = Field(None, description="Class names in index order; default: 0 to the largest label.")
    id: Literal["content", "row"] = Field("content", description="sample_id: hash of shape and pixels, or split and row.")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.test_images is None) != (self.test_labels is None):
            raise ValueError("test_images and test_labels go together")
        return self


def _adds(params: IdxParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    fields: dict[str, pa.DataType | pa.Field] = {
        "sample_id": pa.string(),
        "image": image_field(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "label": label_field(params.classes or _counted(params)),
        "label_name": pa.string(),
        "source": pa.string(),
    }
    if params.test_images:
        fields["split"] = pa.string()
    return fields


def _units(params: IdxParams) -> list[Unit]:
    units = []
    for split, images, labels in _pairs(params):
        (rows, *_), (labelled,) = _shape(images, 3), _shape(labels, 1)
        if rows != labelled:
            raise InputError(str(labels), f"holds {labelled:,} labels, and {images.name} {rows:,} images")
        units += [Unit(f"{split}-{start}", start, min(start + _SHARD_ROWS, rows), split) for start in range(0, rows, _SHARD_ROWS)]
    return units


@source(version=1, units=_units, adds=_adds)
def idx(unit: Unit, params: IdxParams, schema: pa.Schema) -> Iterator[Rows]:
    """Read grey images and their labels from idx files, as MNIST and Fashion-MNIST come.

    Each image becomes a PNG. With test files there is a column `split`: their rows are `test` and come
    first, the others are `train`; without, there is none. A label beyond `classes` is rejected.

    Source: the format's description by LeCun, Cortes and Burges, on MNIST's page.

    Raises:
        InputError: no such file, not idx of unsigned bytes, too short, or of unequal length.
    """
    names = label_names(schema) or []
    split, images, labels = next(pair for pair in _pairs(params) if pair[0] == unit.value)
    pixels = zip(_items(images, 3, unit), _items(labels, 1, unit), strict=True)
    yield from gather((_sample(split, images, row, pixels_HW, int(label), names, params) for row, (pixels_HW, label) in enumerate(pixels, unit.start)), schema)


def _sample(split: str, file: Path, row: int, pixels_HW: np.ndarray, label: int, names: list[str], params: IdxParams) -> tuple[dict[str, Any], str | None]:
    values: dict[str, Any] = {
        "sample_id": pixels_id(pixels_HW) if params.id == "content" else f"{split}:{row}",
        "source": f"{file.name}:{row}",
        "split": split,
    }
    if label >= len(names):
        return values, f"label {label} out of range ({len(names)} classes)"
    height, width = pixels_HW.shape
    image = {"image": encode_png(pixels_HW[..., None]), "width": width, "height": height, "format": "png"}
    return values | image | {"label": label, "label_name": names[label]}, None


def _pairs(params: IdxParams) -> list[tuple[str, Path, Path]]:
    """(split, images, labels) of the files given, in SPLIT_ORDER."""
    pairs = [("train", params.images, params.labels)]
    if params.test_images and params.test_labels:
        pairs.insert(0, ("test", params.test_images, params.test_labels))
    return pairs


def _counted(params: IdxParams) -> list[str]:
    """Names for classes without any: 0 to the largest label of all files."""
    largest = -1
    for _, _, labels in _pairs(params):
        (rows,) = _shape(labels, 1)
        largest = max([largest, *(int(label) for label in _items(labels, 1, Unit("all", 0, rows)))])
    return [str(label) for label in range(largest + 1)]


def _shape(file: Path, dimensions: int) -> tuple[int, ...]:
    with _opened(file) as stream:
        return _header(stream, file, dimensions)


def _items(file: Path, dimensions: int, unit: Unit) -> Iterator[np.ndarray]:
    """Items start to stop of a file, uint8, read as they are asked for."""
    with _opened(file) as stream:
        shape = _header(stream, file, dimensions)
        item_bytes = math.prod(shape[1:])
        stream.seek(unit.start * item_bytes, 1)
        for row in range(unit.start, unit.stop):
            data = stream.read(item_bytes)
            if len(data) < item_bytes:
                raise InputError(str(file), f"ends after {row:,} of {shape[0]:,} rows", "get the file again")
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])


def _header(stream: IO[bytes], file: Path, dimensions: int) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES or magic[3] != dimensions:
        raise InputError(str(file), f"is no idx file of unsigned bytes with {dimensions} dimension{'s' * (dimensions > 1)}")
    shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(dimensions))
    # Before anything of that size is read: the numbers are the file's own word.
    if math.prod(shape[1:]) > MAX_PIXELS or 0 in shape[1:]:
        raise InputError(str(file), f"claims images of {' x '.join(str(size) for size in shape[1:])} pixels")
    return shape


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file for reading, unpacked if it is gzipped: by its content, not its name."""
    try:
        with file.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(file), "is a broken gzip file", "get the file again") from error
    except OSError as error:
        raise InputError(str(file), f"can't be read: {error.strerror}") from error
