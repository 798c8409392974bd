"""Shards: the files of an export, each with some rows of one split, in one of three forms.

Equal rows give equal bytes, under one version of pyarrow where it does the writing: no shard holds a
time, an owner, a name of the machine, or anything of the rows before it.
"""

import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from stillroom.fields import heavy_kind, heavy_names, label_names
from storage.features import IMAGE_TYPE, features_of, hub_metadata, hub_schema

__all__ = ["FORMS", "Form", "FormName", "member_key"]

FormName = Literal["parquet", "webdataset", "hf"]
Write = Callable[[pa.RecordBatch], None]

# A row group is what a reader holds in memory.
GROUP_BYTES, GROUP_ROWS = 32 << 20, 1 << 16
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"RIFF": "webp",
    **{b"P%d" % kind: "ppm" for kind in range(1, 7)},
}


@dataclass(frozen=True)
class Form:
    """A form of export.

    Args:
        name: what `--as` calls it.
        path: where a shard stands in the target, from split, index and count.
        shard: opens a shard for writing, from a file and the schema of what will be written to it.
        file_bytes: about how large a file is unless somebody says otherwise.
        empty: whether a split without rows has a file: `load_dataset` fails over one, `load_from_disk` without.
        beside: small files that the form needs besides, from the schema and the shards' paths by split.
    """

    name: FormName
    path: str
    shard: Callable[[BinaryIO, pa.Schema], AbstractContextManager[Write]]
    file_bytes: int
    empty: bool = False
    beside: Callable[[pa.Schema, Mapping[str, list[str]], str], dict[str, bytes]] = lambda schema, paths, digest: {}


@contextmanager
def parquet_shard(sink: BinaryIO, schema: pa.Schema) -> Iterator[Write]:
    """A Parquet file with every column as it is, and the fields' meaning in the Arrow schema that it carries.

    The features of `datasets` stand in the metadata too, where all columns have one: class names come
    back; a picture stays bytes, until `cast_column("image", Image())`.
    """
    import pyarrow.parquet as pq

    with suppress(TypeError):  # a type without a feature: the library would refuse the file either way
        schema = schema.with_metadata(hub_metadata(schema))
    light = [field.name for field in schema if not heavy_kind(field) and not pa.types.is_nested(field.type)]
    words = [name for name in light if pa.types.is_string(schema.field(name).type)]
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=words, write_statistics=light) as file:

        def flush() -> None:
            table = pa.Table.from_batches(waiting, schema)
            file.write_table(table, row_group_size=max(1, table.num_rows))
            waiting.clear()

        def write(batch: pa.RecordBatch) -> None:
            waiting.append(batch.replace_schema_metadata(schema.metadata))
            if sum(each.nbytes for each in waiting) >= GROUP_BYTES or sum(each.num_rows for each in waiting) >= GROUP_ROWS:
                flush()

        yield write
        if waiting:
            flush()


@contextmanager
def tar_shard(sink: BinaryIO, schema: pa.Schema) -> Iterator[Write]:
    """A tar in WebDataset's convention: the members of a sample follow each other and share the name before the first dot.

    `KEY.png` (or what the bytes are) is the picture, `KEY.cls` the label as a number, `KEY.json` the
    light columns, views and soft labels among them. Further heavy columns are `KEY.NAME.png` or
    `KEY.NAME.npy`. What is null has no member.
    """

    def write(batch: pa.RecordBatch) -> None:
        for name, data in _members(batch, schema):
            # A bare TarInfo has time 0, owner 0 and no names: nothing of this machine.
            member = tarfile.TarInfo(name)
            member.size = len(data)
            sink.write(member.tobuf(tarfile.GNU_FORMAT))
            sink.write(data)
            sink.write(bytes(-len(data) % tarfile.BLOCKSIZE))

    yield write
    sink.write(bytes(2 * tarfile.BLOCKSIZE))


@contextmanager
def arrow_shard(sink: BinaryIO, schema: pa.Schema) -> Iterator[Write]:
    """An Arrow stream as `datasets` maps it into memory: a picture is a struct of bytes and path."""
    stored = hub_schema(schema)
    with pa.ipc.new_stream(sink, stored) as stream:

        def write(batch: pa.RecordBatch) -> None:
            columns = [_with_path(column) if heavy_kind(field) == "image" else column for field, column in zip(schema, batch.columns, strict=True)]
            stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=stored))

        yield write


def member_key(sample_id: str) -> str:
    """The name of a sample's members in a tar: its id, with all but letters, digits, `-`, `_` and `~` as %XX.

    Readers cut a name at its first dot, and some at its last slash: `22.05` would become `22`.
    """
    return quote(sample_id, safe="").replace(".", "%2E")


def _members(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[tuple[str, bytes]]:
    heavy = [name for name in heavy_names(schema) if not pa.types.is_nested(schema.field(name).type) or pa.types.is_fixed_size_list(schema.field(name).type)]
    light = [name for name in schema.names if name not in heavy]
    has_classes = label_names(schema) is not None
    lines = batch.select(light).to_pylist()
    vectors = {name: _vectors(batch[name]) for name in heavy if pa.types.is_fixed_size_list(schema.field(name).type)}
    for row, line in enumerate(lines):
        key = member_key(line["sample_id"])
        for name in heavy:
            if not batch[name][row].is_valid:
                continue
            data = _npy(vectors[name][row]) if name in vectors else batch[name][row].as_py()
            suffix = "npy" if name in vectors else _suffix(data)
            yield f"{key}.{suffix}" if name == "image" else f"{key}.{name}.{suffix}", data
        if has_classes and line["label"] is not None:
            yield f"{key}.cls", str(line["label"]).encode()
        yield f"{key}.json", _json(line)


def _json(line: dict[str, Any]) -> bytes:
    """A row as strict JSON: bytes as hex, times as text, and null for what JSON has no number for."""
    write = partial(json.dumps, ensure_ascii=False, allow_nan=False, default=lambda value: value.hex() if isinstance(value, bytes) else str(value))
    try:
        return write(line).encode()
    except ValueError:
        return write(_finite(line)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _suffix(data: bytes) -> str:
    """By content: a table's `format` is that of the bytes as they were found, which may not be those that it stores."""
    return next((suffix for start, suffix in _STARTS.items() if data.startswith(start)), "bin")


def _vectors(column: pa.FixedSizeListArray) -> np.ndarray:
    flat = column.values.slice(column.offset * column.type.list_size, len(column) * column.type.list_size)
    vectors: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return vectors


def _npy(vector: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(vector), allow_pickle=False)
    return out.getvalue()


def _with_path(values: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays([values, pa.nulls(len(values), pa.string())], fields=list(IMAGE_TYPE), mask=values.is_null())


def _disk_files(schema: pa.Schema, paths: Mapping[str, list[str]], digest: str) -> dict[str, bytes]:
    """What `datasets.load_from_disk` reads besides the rows."""
    files: dict[str, Any] = {"dataset_dict.json": {"splits": list(paths)}}
    for split, shards in paths.items():
        files[f"{split}/dataset_info.json"] = {"citation": "", "description": "", "features": features_of(schema), "homepage": "", "license": ""}
        files[f"{split}/state.json"] = {
            "_data_files": [{"filename": shard.rpartition("/")[2]} for shard in shards],
            # The library's caches go by it.
            "_fingerprint": f"{digest[:16]}-{split}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
    return {name: json.dumps(value, indent=2, ensure_ascii=False).encode() for name, value in files.items()}


# `SPLIT-00000-of-00003` is the Hub's own convention: `load_dataset` finds the splits by it.
_NUMBERED = "data/{split}-{index:05}-of-{count:05}"
FORMS = {
    form.name: form
    for form in (
        Form("parquet", f"{_NUMBERED}.parquet", parquet_shard, 512 << 20),
        Form("webdataset", f"{_NUMBERED}.tar", tar_shard, 256 << 20),
        Form("hf", "{split}/data-{index:05}-of-{count:05}.arrow", arrow_shard, 512 << 20, empty=True, beside=_disk_files),
    )
}
