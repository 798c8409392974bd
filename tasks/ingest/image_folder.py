"""ingest.image_folder: the images below a folder, a class a folder or without labels."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import pyarrow as pa
from blake3 import blake3
from pydantic import Field

from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, label_names
from stillroom.images import MAX_PIXELS, ImageFault, as_stored
from stillroom.operators import Params, Rows, SourcePath, Unit, source
from tasks.ingest._samples import SPLIT_ORDER, SPLITS, ClassNames, by_number, content_id, cut, gather, readable, signature


class ImageFolderParams(Params):
    """Parameters of `ingest.image_folder`."""

    path: SourcePath = Field(description="The folder.")
    layout: Literal["class_folders", "flat"] = Field("class_folders", description="A folder a class, or no labels at all; never guessed.")
    splits: Literal["none", "folders"] = Field("none", description="folders: the topmost folders are train, validation (val, valid, dev) and test.")
    classes: ClassNames | None = Field(None, description="Class folders in index order; default: those that are there, digits counted as numbers.")
    id: Literal["content", "path"] = Field("content", description="sample_id: hash of the bytes as found, or the path below the folder.")
    truncated: Literal["reject", "pad"] = Field("reject", description="pad fills what a cut JPEG lacks, and adds the column `padded`.")
    max_pixels: int = Field(MAX_PIXELS, gt=0, description="Reject images of more pixels, by their header.")
    max_bytes: int = Field(256 << 20, gt=0, description="Reject files of more bytes, unread.")
    shard_rows: int = Field(256, gt=0, description="Files a unit of work, on average: of one that holds a new file all are read; no result depends on it.")


def _adds(params: ImageFolderParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    fields: dict[str, pa.DataType | pa.Field] = {"sample_id": pa.string(), "image": image_field()}
    fields |= {"width": pa.int32(), "height": pa.int32(), "format": pa.string()}
    folders = _class_folders(params)
    if params.layout == "class_folders":
        fields |= {"label": label_field(params.classes or folders), "label_name": pa.string()}
    fields["source"] = pa.string()
    if params.splits == "folders":
        fields["split"] = pa.string()
    if params.truncated == "pad":
        fields["padded"] = pa.bool_()
    return fields


def _units(params: ImageFolderParams) -> list[Unit]:
    _class_folders(params)
    paths = sorted(_files(params.path, [os.path.realpath(params.path)]), key=lambda path: (_turn(path, params), path))
    if not paths:
        raise InputError(str(params.path), "holds no files")
    # Quoted, because a name on disk is bytes, and JSON holds text only.
    quoted = [quote(path, errors="surrogateescape") for path in paths]
    bounds = cut(quoted, params.shard_rows)
    return [Unit(f"files-{start}", start, stop, quoted[start:stop], key=signature(params.path, paths[start:stop])) for start, stop in bounds]


@source(version=1, units=_units, adds=_adds)
def image_folder(unit: Unit, params: ImageFolderParams, schema: pa.Schema) -> Iterator[Rows]:
    """Read the images below a folder, as they are encoded, in the order of their paths (splits: test first).

    Every file below the folder becomes a row or a rejected row with its reason: what isn't an image,
    is broken or too large, or lies outside a class folder. Files and folders whose name starts with a
    dot aren't looked at; symbolic links are followed. An image that isn't plain (orientation, palette,
    alpha, CMYK, 16 bits; the policy of `stillroom.images`) is stored as an upright PNG, all others as
    found; `format` is that of the file, by content. The class is the first folder, whatever lies deeper.

    Raises:
        InputError: no such folder, no class folders, a folder that is no split, a link that loops.
    """
    labels = {name: index for index, name in enumerate(label_names(schema) or [])}
    yield from gather((_sample(unquote(path, errors="surrogateescape"), params, labels) for path in unit.value), schema)


def _sample(path: str, params: ImageFolderParams, labels: Mapping[str, int]) -> tuple[dict[str, Any], str | None]:
    """The values of one file, and the reason to reject it, if any."""
    name = readable(path)
    values: dict[str, Any] = {"sample_id": name, "source": name}
    placed, misplaced = _place(name.split("/"), params, labels)
    values |= placed
    file = params.path / path
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return values, "not a regular file"
        if status.st_size > params.max_bytes:
            return values | _id(blake3().update_mmap(file).hexdigest(length=16), params), f"{status.st_size:,} bytes > limit {params.max_bytes:,}"
        data = file.read_bytes()
    except OSError as error:
        return values, f"can't be read: {error.strerror}"
    values |= _id(content_id(data), params)
    if misplaced:
        return values, misplaced
    try:
        stored = as_stored(data, max_pixels=params.max_pixels, truncated=params.truncated)
    except ImageFault as fault:
        return values, str(fault)
    facts = stored.facts
    return values | {"image": stored.data, "width": facts.width, "height": facts.height, "format": facts.format, "padded": stored.padded}, None


def _turn(path: str, params: ImageFolderParams) -> int:
    """When the split of a path has its turn."""
    split = SPLITS.get(path.split("/")[0]) if params.splits == "folders" else None
    return SPLIT_ORDER.index(split) if split else 0


def _id(content: str, params: ImageFolderParams) -> dict[str, str]:
    return {"sample_id": content} if params.id == "content" else {}


def _place(parts: list[str], params: ImageFolderParams, labels: Mapping[str, int]) -> tuple[dict[str, Any], str | None]:
    """What the folders of a path say, and what is wrong with them."""
    values: dict[str, Any] = {}
    folders = parts[:-1]
    if params.splits == "folders":
        if not folders:
            return values, "not in the folder of a split"
        values["split"] = SPLITS[folders.pop(0)]
    if params.layout == "flat":
        return values, None
    if not folders:
        return values, "not in a class folder"
    if folders[0] not in labels:
        return values, f"class folder '{folders[0]}' is not in classes"
    return values | {"label": labels[folders[0]], "label_name": folders[0]}, None


def _class_folders(params: ImageFolderParams) -> list[str]:
    """Names of the class folders over all splits, in the order of their labels; the layout is checked."""
    roots = [params.path]
    if params.splits == "folders":
        roots = [params.path / name for name in _split_folders(params.path)]
    if params.layout == "flat":
        _entries(params.path)
        return []
    names = {name for root in roots for name in _subfolders(root)}
    if not names:
        raise InputError(str(params.path), "holds no class folders", "give `layout: flat`, or put the images of each class into a folder of its name")
    return sorted(names, key=by_number)


def _split_folders(path: Path) -> list[str]:
    names = _subfolders(path)
    known = "train, validation (or val, valid, dev) and test"
    if strange := [name for name in names if name not in SPLITS]:
        raise InputError(str(path), f"`splits: folders`, but '{strange[0]}' is no split", f"splits are {known}")
    if not names:
        raise InputError(str(path), "`splits: folders`, but it holds no folders", f"splits are {known}")
    return names


def _subfolders(path: Path) -> list[str]:
    return sorted(readable(entry.name) for entry in _entries(path) if entry.is_dir())


def _files(folder: Path, above: list[str], prefix: str = "") -> Iterator[str]:
    """Paths, relative and with slashes, of all that lies below a folder and is no folder itself."""
    for entry in _entries(folder):
        if not entry.is_dir():
            yield prefix + entry.name
            continue
        real = os.path.realpath(entry.path)
        if real in above:
            raise InputError(readable(entry.path), "is a symbolic link to a folder that holds it")
        yield from _files(Path(entry.path), [*above, real], f"{prefix}{entry.name}/")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        raise InputError(str(folder), "no such folder") from None
    except NotADirectoryError:
        raise InputError(str(folder), "is a file, and a folder of images was expected") from None
    except OSError as error:
        raise InputError(readable(str(folder)), f"can't be listed: {error.strerror}") from error
