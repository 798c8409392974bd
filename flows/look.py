"""What stands at a path: a folder of images or Parquet, looked at as far as a first recipe needs."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Found", "look_at"]

# Images whose headers are read: enough to see sizes and colours, soon done on any disk.
SAMPLE = 200
MAX_IMAGE_BYTES = 64 << 20

# What columns are commonly called, the likeliest first.
_IMAGE = ("image", "img", "jpg", "jpeg", "png", "picture", "photo", "pixel_values")
_LABEL = ("label", "labels", "class", "cls", "category", "target", "fine_label", "coarse_label", "digit", "y")
_TEXT = ("text", "caption", "sentence", "content", "prompt")
_SPLIT = ("split", "fold", "subset")


@dataclass(frozen=True)
class Found:
    """A data set as found.

    Args:
        op: the operator that reads it: `ingest.image_folder` or `ingest.parquet`.
        rows: files or rows, broken ones included.
        classes: names of the classes, None where nothing says a class.
        splits: those that the data comes in: train, validation, test; empty where it isn't split.
        columns: for Parquet, the column of each role.
        id: where sample ids come from, as ingest takes it.
        width_px, height_px: smallest and largest of a sample of images; None without images.
        channels: 1 where all of them are grey, else 3.
        unusable: the part of rows, estimated, that ingest would reject.
        stray: what makes them unusable, in words.
    """

    op: Literal["ingest.image_folder", "ingest.parquet"]
    path: Path
    rows: int
    classes: list[str] | None = None
    splits: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    id: str = "content"
    width_px: tuple[int, int] | None = None
    height_px: tuple[int, int] | None = None
    channels: int = 3
    unusable: float = 0.0
    stray: str = ""


def look_at(path: Path) -> Found:
    """Look at a folder of images, a Parquet file, or a folder of Parquet files.

    Every file is counted; of images, the headers of 200 at most are read.

    Raises:
        InputError: nothing is there that ingest could read, or it can't be told what it is.
    """
    if not path.exists():
        raise InputError(str(path), "no such file or folder")
    if path.is_file():
        if path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(path, [path])
        raise InputError(str(path), "is neither a folder nor a Parquet file", _other_operator([path.name]) or "give the folder that the images are in")
    files = _Files.below(path)
    if not files.count:
        raise InputError(str(path), "holds no files")
    if files.parquet:
        return _parquet(path, [path / name for name in files.parquet])
    if hint := _other_operator(files.names):
        raise InputError(str(path), "isn't a folder of images", hint)
    return _image_folder(path, files)


@dataclass
class _Files:
    """The files below a folder: how many, an even sample of them, and where they lie."""

    names: list[str]
    parquet: list[str]
    folders: dict[str, int]
    count: int = 0

    @classmethod
    def below(cls, path: Path) -> "_Files":
        """Walk a folder in the order of names; names that start with a dot aren't looked at."""
        files, stride = cls([], [], {}), 1
        for name in _walk(path):
            if name.lower().endswith(".parquet"):
                files.parquet.append(name)
            top = "/".join(name.split("/")[:-1][:2])
            files.folders[top] = files.folders.get(top, 0) + 1
            if files.count % stride == 0:
                files.names.append(name)
            if len(files.names) == 2 * SAMPLE:
                # Every other name stays, so that what is kept is spread over all of them.
                files.names, stride = files.names[::2], 2 * stride
            files.count += 1
        return files


def _walk(folder: Path, prefix: str = "", depth: int = 0) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(str(folder), f"can't be listed: {error.strerror}") from None
    for entry in entries:
        if not entry.is_dir():
            yield prefix + entry.name
        elif depth < 32:  # a link to a folder above would go on for ever
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)


def _other_operator(names: list[str]) -> str:
    """Which operator reads what `init` can't write a recipe for, by the names of files."""
    for name in names:
        base = name.rpartition("/")[2].lower()
        if "-ubyte" in base:
            return "these look like the MNIST family's files: see `stillroom ops ingest.idx`"
        if base in ("dataset_info.json", "state.json", "dataset_dict.json"):
            return "this looks like a folder of the datasets library: see `stillroom ops ingest.hf_dataset`"
    return ""


def _image_folder(path: Path, files: _Files) -> Found:
    from tasks.ingest._samples import SPLITS, by_number

    tops = sorted({folder.split("/")[0] for folder in files.folders} - {""})
    named = [top for top in tops if top in SPLITS]
    split = len(named) > 1 or tops == ["train"]
    if split and (strange := [top for top in tops if top not in SPLITS]):
        raise InputError(str(path), f"holds '{named[0]}' and '{named[1]}', which are splits, and '{strange[0]}', which is none", "move it elsewhere first")
    depth = 1 if split else 0
    inner = {parts[depth] for folder in files.folders if len(parts := folder.split("/")) > depth and parts[depth]}
    # One folder tells nothing apart, so it is no class.
    classes = sorted(inner, key=by_number) if len(inner) > 1 else None
    # Where labels come from folders, a file that lies in none of them is set aside, whatever it holds.
    inside = depth + (1 if classes else 0)
    misplaced = sum(count for folder, count in files.folders.items() if len([part for part in folder.split("/") if part]) < inside)
    headers = _headers(_read(path / name) for name in _even([name for name in files.names if name.count("/") >= inside]))
    if not headers.sizes:
        raise InputError(str(path), f"none of {headers.seen} files looked at is an image", "JPEG, PNG, GIF, BMP, TIFF, WebP and PPM are read")
    broken = headers.faulty / headers.seen * (1 - misplaced / files.count)
    where = "files outside a class folder" if classes else "files outside the splits' folders"
    stray = " and ".join([*(["files that are no images"] if broken else []), *([where] if misplaced else [])])
    splits = tuple(dict.fromkeys(SPLITS[top] for top in tops)) if split else ()
    return Found("ingest.image_folder", path, files.count, classes, splits, {}, "content", *headers.facts(), broken + misplaced / files.count, stray)


def _parquet(path: Path, files: list[Path]) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.ingest._columns import assign, class_names, unified
    from tasks.ingest._samples import SPLITS

    try:
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        schema = unified((file.name, pq.read_schema(file)) for file in files)
    except (pa.ArrowException, OSError) as error:
        raise InputError(str(path), f"can't be read as Parquet: {str(error).splitlines()[0]}") from None
    if not rows:
        raise InputError(str(path), "holds no rows")
    columns = _roles(schema)
    if not columns.keys() & {"image", "text"}:
        raise InputError(
            str(path), "has no column that is images or text by its name and type", f"it has {', '.join(schema.names)}: see `stillroom ops ingest.parquet`"
        )
    id_ = "column:sample_id" if "sample_id" in schema.names else "content"
    roles = assign(str(path), schema, columns, id_)
    classes = class_names(str(path), schema, roles, None, _values(files, columns["label"])) if "label" in columns else None
    splits = _splits(path, files, columns, SPLITS)
    headers = _headers(_images(files, columns["image"])) if "image" in columns else _Headers()
    if "image" in columns and not headers.sizes:
        raise InputError(str(path), f"column '{columns['image']}' holds no images", "see `stillroom ops ingest.parquet`")
    unusable = headers.faulty / max(1, headers.seen)
    return Found("ingest.parquet", path, rows, classes, splits, columns, id_, *headers.facts(), unusable, "rows without a sound image" if unusable else "")


def _roles(schema: "pa.Schema") -> dict[Any, str]:
    """Column by role: by common names among those of a type that fits; images also by type, where only one column is bytes."""
    names = {role: [name for name in schema.names if _fits(role, schema.field(name).type)] for role in ("image", "label", "text", "split")}
    columns: dict[Any, str] = {}
    for role, common in (("image", _IMAGE), ("label", _LABEL), ("text", _TEXT), ("split", _SPLIT)):
        known = {name.lower(): name for name in reversed(names[role]) if name not in columns.values()}
        if found := [known[name] for name in common if name in known]:
            columns[role] = found[0]
    if "image" not in columns and len(names["image"]) == 1:
        columns["image"] = names["image"][0]
    return columns


def _fits(role: str, type_: "pa.DataType") -> bool:
    import pyarrow.types as types

    if role == "image":
        # The datasets library keeps an image as struct<bytes, path>.
        return types.is_binary(type_) or (types.is_struct(type_) and type_.get_field_index("bytes") >= 0)
    return types.is_string(type_) or (role == "label" and (types.is_integer(type_) or types.is_boolean(type_)))


def _splits(path: Path, files: list[Path], columns: dict[str, str], known: Mapping[str, str]) -> tuple[str, ...]:
    """The splits that a column names; a column that names others plays no role."""
    if "split" not in columns:
        return ()
    values = {value for part in _values(files, columns["split"]) for value in part.unique().to_pylist()}
    if strange := sorted(str(value) for value in values if value not in known):
        if columns["split"] == "split":
            raise InputError(
                str(path),
                f"column 'split' holds '{strange[0]}', which is no split",
                f"splits are {', '.join(known)}; rename the column if it means something else",
            )
        del columns["split"]
        return ()
    return tuple(dict.fromkeys(known[str(value)] for value in sorted(values)))


def _values(files: list[Path], column: str) -> "Iterator[pa.Array]":
    """The values of a light column, file by file."""
    import pyarrow.parquet as pq

    for file in files:
        if column in pq.read_schema(file).names:
            yield from pq.read_table(file, columns=[column])[column].chunks


def _images(files: list[Path], column: str) -> Iterator[bytes | None]:
    """The first images of each file, so many that they make up the sample together."""
    import pyarrow.parquet as pq

    each = -(-SAMPLE // len(files))
    for file in files[:SAMPLE]:
        left = each
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(min(each, 32), columns=[column]):
                for value in batch.column(0).slice(0, left).to_pylist():
                    yield value["bytes"] if isinstance(value, dict) else value
                if (left := left - batch.num_rows) <= 0:
                    break


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.stat().st_size <= MAX_IMAGE_BYTES else None
    except OSError:
        return None


def _even(names: list[str]) -> list[str]:
    """At most 200 of the names, spread over all of them."""
    return names[:: -(-len(names) // SAMPLE) or 1]


@dataclass
class _Headers:
    """What the headers of a sample of images say."""

    seen: int = 0
    faulty: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    colour: bool = False

    def facts(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int]:
        """Width, height (smallest, largest) and channels."""
        if not self.sizes:
            return None, None, 3
        widths, heights = zip(*self.sizes, strict=True)
        return (min(widths), max(widths)), (min(heights), max(heights)), 3 if self.colour else 1


def _headers(values: Iterable[bytes | None]) -> _Headers:
    from stillroom.images import ImageFault, probe

    headers = _Headers()
    for value in values:
        headers.seen += 1
        try:
            facts = probe(value or b"")
        except ImageFault:
            headers.faulty += 1
            continue
        headers.sizes.append((facts.width, facts.height))
        headers.colour |= facts.channels == 3
    return headers
