"""ingest.hf_dataset: a folder that the `datasets` library wrote or reads."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.images import MAX_PIXELS
from stillroom.operators import Params, Rows, SourcePath, Unit, source
from stillroom.stored import own_columns
from tasks.ingest._columns import Role, Roles, assign, class_names, fields_of, hub_features, id_column, plain, unified
from tasks.ingest._rows import Origin, parts, repeated, rows_of
from tasks.ingest._samples import SPLIT_ORDER, SPLITS, ClassNames, reading

_BATCH_ROWS, _SHARD_ROWS = 128, 8192
# The readers of `datasets` that we let loose on a folder; others unpack archives, or run their own formats.
_READERS = ("imagefolder", "parquet", "arrow")
_NO_SPLIT = ""
UNREADABLE = "datasets can't read it"


class HfDatasetParams(Params):
    """Parameters of `ingest.hf_dataset`."""

    path: SourcePath = Field(description="The folder: from save_to_disk, or images or Parquet files that load_dataset reads.")
    split: str | None = Field(None, description="Read this split alone; default: all of them, with a column `split`.")
    columns: dict[Role, str] | None = Field(None, description="Column by role; default: the one Image, the one ClassLabel, and columns called like a role.")
    classes: ClassNames | None = Field(None, description="Class names in index order; default: ClassLabel's, else those found.")
    id: str = Field(
        "content",
        pattern="^(content|row|column:.+)$",
        description="sample_id: content (hash of the image's bytes, else of the text), row (split:row), or column:NAME.",
    )
    max_pixels: int = Field(MAX_PIXELS, gt=0, description="Reject images of more pixels, by their header.")


def _adds(params: HfDatasetParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    splits = _splits(params)
    schema, roles = _roles(params, splits)
    labels = (values for held in splits.values() for values in _column(held, str(params.path), roles.columns["label"]))
    names = class_names(str(params.path), schema, roles, params.classes, labels)
    fields = fields_of(schema, roles, names)
    return fields if _NO_SPLIT in splits else fields | {"split": pa.string()}


def _units(params: HfDatasetParams) -> list[Unit]:
    splits = _splits(params)
    _, roles = _roles(params, splits)
    key = id_column(params.id)
    duplicates = repeated([(split or "row", partial(_column, held, str(params.path), key)) for split, held in splits.items()]) if key else {}
    value = {"columns": dict(roles.columns), "passing": list(roles.passing)}
    units = []
    for split, held in splits.items():
        known = duplicates.get(split or "row", [])
        # What is read as a stream has neither a length nor a way into its middle: one unit.
        starts = range(0, len(held), _SHARD_ROWS) if hasattr(held, "__len__") else [0]
        for start in starts:
            stop = min(start + _SHARD_ROWS, len(held)) if hasattr(held, "__len__") else 0
            own = [[row, place] for row, place in known if not stop or start <= row < stop]
            units.append(Unit(f"{split or 'rows'}-{start}", start, stop, {**value, "split": split, "duplicates": own}))
    return units


@source(version=1, units=_units, adds=_adds)
def hf_dataset(unit: Unit, params: HfDatasetParams, schema: pa.Schema) -> Iterator[Rows]:
    """Read a folder of the `datasets` library: Image and ClassLabel features keep their meaning.

    Images are taken as their encoded bytes, never through the library's decoder, checked, and stored
    as they are, or as an upright PNG where they aren't plain (the policy of `stillroom.images`). Nothing
    is downloaded, no loading script runs, and a name on the Hub is refused. Rows are rejected for the
    reasons of `ingest.parquet`.

    Raises:
        InputError: no such folder, nothing in it that is read, a split of another name.
    """
    schema = own_columns(schema)
    split = unit.value["split"]
    roles = Roles(unit.value["columns"], tuple(unit.value["passing"]), params.id)
    origin = Origin(split or "row", dict(unit.value["duplicates"]), inside=params.path, max_pixels=params.max_pixels)
    first_row = unit.start
    for batch in _batches(_splits(params)[split], str(params.path), unit.start, unit.stop):
        for part in parts(batch):
            yield _with_split(rows_of(part, first_row, origin, roles, _unsplit(schema, roles)), split, schema)
            first_row += part.num_rows


def _unsplit(schema: pa.Schema, roles: Roles) -> pa.Schema:
    """The schema without the column that the dataset's own splits fill."""
    return schema if "split" in roles.columns or "split" not in schema.names else schema.remove(schema.get_field_index("split"))


def _with_split(rows: Rows, split: str, schema: pa.Schema) -> Rows:
    if rows.batch.schema == schema:
        return rows
    columns = [pa.array([SPLITS[split]] * rows.batch.num_rows) if name == "split" else rows.batch.column(name) for name in schema.names]
    return Rows(pa.RecordBatch.from_arrays(columns, schema=schema), rejected=rows.rejected)


def _roles(params: HfDatasetParams, splits: Mapping[str, Any]) -> tuple[pa.Schema, Roles]:
    schema = unified((split or str(params.path), held.features.arrow_schema) for split, held in splits.items())
    columns = dict(params.columns or {})
    for role, kind in (("image", "Image"), ("label", "ClassLabel")):
        named = [name for name, feature in hub_features(schema).items() if feature.get("_type") == kind and name in schema.names]
        if role in columns or role in schema.names or not named:
            continue
        if len(named) > 1:
            problem = f"has {len(named)} columns that may be the {role}: {', '.join(named)}"
            raise InputError(str(params.path), problem, f"give `columns: {{{role}: {named[0]}}}`")
        columns[role] = named[0]  # type: ignore[index]
    return schema, assign(str(params.path), schema, columns, params.id)


def _splits(params: HfDatasetParams) -> dict[str, Any]:
    """Datasets by split, as the library opens them; one without splits stands under ""."""
    held = _opened(params.path)
    if not isinstance(held, dict):
        if params.split is not None:
            raise InputError(str(params.path), f"has no splits, and so no '{params.split}'", "leave out `split`")
        return {_NO_SPLIT: held}
    if params.split is not None:
        if params.split not in held:
            raise InputError(str(params.path), f"has no split '{params.split}'", f"it has {', '.join(held)}")
        return {_NO_SPLIT: held[params.split]}
    if strange := [split for split in held if split not in SPLITS]:
        raise InputError(str(params.path), f"split '{strange[0]}' is none of train, validation, test", f"give `split: {strange[0]}` to read it alone")
    return {split: held[split] for split in sorted(held, key=lambda split: SPLIT_ORDER.index(SPLITS[split]))}


def _opened(path: Path) -> Any:
    """A Dataset, or a dict of Datasets or streams by split."""
    if not path.is_dir():
        raise InputError(str(path), "no such folder", "the Hub isn't asked: save_to_disk it where there is a network, and give that folder")
    # Read once, when `datasets` is first imported.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    import datasets

    with reading(str(path), UNREADABLE):
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        # The library leaves locks there, named after the path.
        with TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(str(path), cache_dir=cache)
            if (reader := type(builder).__module__.rsplit(".", 1)[-1]) not in _READERS:
                raise InputError(str(path), f"holds data for the reader '{reader}' of datasets", "save_to_disk it, and give that folder")
            return dict(builder.as_streaming_dataset())


def _batches(held: Any, where: str, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows as Arrow batches, not decoded; a stream comes whole."""
    arrow = held.with_format("arrow")
    ranges = ((first, min(first + _BATCH_ROWS, stop)) for first in range(start, stop, _BATCH_ROWS))
    with reading(where, UNREADABLE):
        for table in (arrow[first:last] for first, last in ranges) if hasattr(held, "__len__") else arrow.iter(_BATCH_ROWS):
            yield from table.combine_chunks().to_batches()


def _column(held: Any, where: str, column: str) -> Iterator[pa.Array]:
    """One column in its plain type, batch by batch."""
    for batch in _batches(held.select_columns([column]), where, 0, len(held) if hasattr(held, "__len__") else 0):
        yield batch.column(0).cast(plain(batch.column(0).type))
