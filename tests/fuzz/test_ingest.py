"""Files that nobody should have written, under names that nobody should have given: rows, rejected rows with a reason, or one line."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from stillroom.draws import Draw
from stillroom.operators import Operator, Work, call
from stillroom.registry import load
from stillroom.stored import with_hashes
from tests.fuzz.mutations import ODD_TEXT, ODD_VALUES, damaged, fuzz, nothing_outside, refused_or_fine, twisted


def encoded(kind: str, seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


IMAGES = [encoded(kind, seed) for seed, kind in enumerate(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])]
IMAGES.append(encoded("JPEG", 9, progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"))
NOT_IMAGES = [b"", b"\0" * 64, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#!/bin/sh\ntouch ran\n", b"PK\x03\x04" + b"\0" * 60, gzip.compress(b"x" * 99)]
# What a file system takes as a name; an id may be anything.
NAMES = st.one_of(
    st.sampled_from(["a.png", "..png", " ", "a b", "-rf", "$(touch ran)", "a\nb.png", "\u202egnp.exe", "café.png", "cafe\u0301.png", "%2e%2e", "CON", "a\\..\\b", "\x7f", "x" * 240]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=12).filter(lambda name: not set(b"/\0") & set(name)).map(os.fsdecode),
)  # fmt: skip


def ingested(operator: str, **params: Any) -> list[tuple[str, str | None]]:
    """Ids, each with the reason to reject it or None; whatever the operator promises of them is checked."""
    found: Operator = load(operator)
    checked = found.params.model_validate(params)
    schema = pa.schema(list(found.added(checked, {}).values()))
    rows_of: list[tuple[str, str | None]] = []
    for unit in call(found.units, {"params": checked}):
        # A unit goes to a worker as JSON does.
        assert json.loads(json.dumps([unit.value]))
        for rows in call(found.fn, {"unit": unit, "params": checked, "schema": with_hashes(schema)}):
            assert rows.batch.schema == schema
            rows.batch.validate(full=True)
            reasons = [None] * rows.batch.num_rows if rows.rejected is None else rows.rejected.to_pylist()
            ids = rows.batch["sample_id"].to_pylist()
            assert all(isinstance(id_, str) for id_ in ids) and all(reason is None or reason.strip() for reason in reasons)
            rows_of += list(zip(ids, reasons, strict=True))
    return rows_of


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes a new empty folder of sources; whoever asks for one gives the last one back."""
    (tmp_path / "ran").write_text("not yet")
    (tmp_path / "secret.png").write_bytes(IMAGES[0])

    def empty() -> Path:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        (tmp_path / "place").mkdir()
        return tmp_path / "place"

    yield empty
    assert (tmp_path / "ran").read_text() == "not yet"


def taken(place: Path, operator: str, **params: Any) -> Any:
    """What `ingested` gives or the error with which it refuses; nothing beside the sources may change, nor they themselves."""
    with nothing_outside(place), nothing_outside(place / "none"):
        return refused_or_fine(lambda: ingested(operator, **params))


@fuzz(60)
@given(
    files=st.lists(
        st.tuples(NAMES | st.just(""), NAMES, st.sampled_from(IMAGES).flatmap(damaged) | st.sampled_from(IMAGES + NOT_IMAGES)), min_size=1, max_size=4
    ),
    links=st.lists(st.tuples(NAMES, st.sampled_from(["../secret.png", "..", "/dev/zero", "/etc", ".", "nowhere", "a.png"])), max_size=1),
    layout=st.sampled_from(["class_folders", "flat"]),
    splits=st.sampled_from(["none", "none", "folders"]),
    id_=st.sampled_from(["content", "path"]),
    truncated=st.sampled_from(["reject", "pad"]),
)
def test_image_folder(place, files, links, layout, splits, id_, truncated):
    folder = place()
    for parent, name, data in files:
        with suppress(OSError):  # this file system takes no such name
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent / name).write_bytes(data)
    for name, target in links:
        with suppress(OSError):
            # /etc is larger than what a test should read; /dev is a folder of devices, pipes and links.
            (folder / name).symlink_to("/dev/fd" if target == "/etc" else target)
    taken(folder, "ingest.image_folder", path=folder, layout=layout, splits=splits, id=id_, truncated=truncated)


def table() -> pa.Table:
    return pa.table(
        {
            "image": pa.array([{"bytes": data, "path": None} for data in IMAGES], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([0, 1, 2, 0, 1, 2, None], pa.int64()),
            "text": pa.array([f"text {n}" for n in range(7)]),
            "key": pa.array([f"k{n}" for n in range(7)], pa.dictionary(pa.int8(), pa.string())),
            "split": pa.array(["train", "test", "val", "dev", None, "train", "x"]),
            "when": pa.array(range(7), pa.timestamp("us", "UTC")),
        }
    )


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = BytesIO()
    pq.write_table(table, out, row_group_size=3, **options)
    return out.getvalue()


PARQUETS = [parquet(table(), compression=kind) for kind in ("none", "zstd")]
IDS = st.sampled_from(["content", "row", "column:key", "column:text", "column:nothing", "column:label"])


@fuzz(60)
@given(files=st.lists(st.tuples(NAMES, st.sampled_from(PARQUETS).flatmap(damaged) | st.sampled_from(PARQUETS)), min_size=1, max_size=2), id_=IDS)
def test_parquet_files(place, files, id_):
    folder = place()
    for name, data in files:
        with suppress(OSError):
            (folder / f"{name}.parquet").write_bytes(data)
    taken(folder, "ingest.parquet", path=folder, id=id_)


TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(3),
    pa.date32(), pa.timestamp("ns"), pa.duration("s"), pa.decimal128(9, 2), pa.list_(pa.int8()), pa.list_(pa.float32(), 2), pa.struct([("bytes", pa.binary())]),
    pa.map_(pa.string(), pa.int8()), pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip
VALUES = {
    pa.bool_(): st.booleans(), pa.int8(): st.integers(-128, 127), pa.uint64(): st.integers(0, 2**64 - 1), pa.float16(): st.just(np.float16("nan")),
    pa.float64(): st.floats(), pa.binary(): st.sampled_from(IMAGES + NOT_IMAGES), pa.binary(3): st.just(b"abc"), pa.list_(pa.int8()): st.just([1, None]),
    pa.list_(pa.float32(), 2): st.just([0.5, float("nan")]), pa.struct([("bytes", pa.binary())]): st.just({"bytes": b"x"}),
    pa.map_(pa.string(), pa.int8()): st.just([("a", 1)]), pa.date32(): st.just(1), pa.timestamp("ns"): st.just(-1), pa.duration("s"): st.just(1), pa.decimal128(9, 2): st.just(1),
}  # fmt: skip
TEXTS = ODD_TEXT.filter(lambda text: text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))
COLUMN_NAMES = (
    st.sampled_from(
        ["image", "label", "text", "group", "split", "source", "sample_id", "label_name", "image_hash", "image_at", "width", "key", "", "a.b", "__x"]
    )
    | TEXTS
)


@st.composite
def odd_tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 3))
    names = draw(st.lists(COLUMN_NAMES, min_size=1, max_size=4))
    columns = []
    for _ in names:
        type_ = draw(st.sampled_from(TYPES))
        values = VALUES.get(type_, st.none() if pa.types.is_null(type_) else TEXTS)
        columns.append(pa.array(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), type_))
    return pa.Table.from_arrays(columns, names)


@fuzz(80)
@given(tables=st.lists(odd_tables(), min_size=1, max_size=2), id_=IDS | st.just("column:sample_id"), classes=st.none() | st.just(["a", "b"]))
def test_tables_of_odd_columns(place, tables, id_, classes):
    folder = place()
    for number, odd in enumerate(tables):
        with suppress(pa.ArrowException):  # Parquet has no such type
            (folder / f"{number}.parquet").write_bytes(parquet(odd))
    taken(folder, "ingest.parquet", path=folder, id=id_, classes=classes)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


PIXELS, LABELS = idx(np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)), idx(np.array([0, 1, 2, 1, 250], np.uint8))


@fuzz(60)
@given(
    images=damaged(PIXELS) | damaged(gzip.compress(PIXELS, mtime=0)) | st.just(PIXELS),
    labels=damaged(LABELS) | damaged(gzip.compress(LABELS, mtime=0)) | st.just(LABELS),
    classes=st.none() | st.just(["a", "b", "c"]),
)
def test_idx(place, images, labels, classes):
    folder = place()
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    taken(folder, "ingest.idx", images=folder / "images", labels=folder / "labels", classes=classes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `datasets` saved: two splits of images."""
    folder = tmp_path_factory.mktemp("saved") / "set"
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "key": datasets.Value("string")})
    columns = {"picture": [{"bytes": data, "path": None} for data in IMAGES], "kind": [0, 1, 0, 1, 0, 1, 0], "key": [f"k{n}" for n in range(7)]}
    whole = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(str(folder))
    return folder


@fuzz(40)
@given(data=st.data(), id_=st.sampled_from(["content", "row", "column:key"]))
def test_hf_dataset(place, saved, data, id_):
    folder = place()
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2)):
        if file.suffix == ".json" and data.draw(st.booleans()):
            with suppress(ValueError):
                file.write_text(json.dumps(data.draw(twisted(deepcopy(json.loads(file.read_text()))))))
        else:
            file.write_bytes(data.draw(damaged(file.read_bytes())))
    taken(folder, "ingest.hf_dataset", path=folder, id=id_)


@fuzz(15)
@given(path=st.sampled_from(["../../secret.png", "/etc/passwd", "~", "a\0b", "", "x" * 300, "https://127.0.0.1:9/x", "zip://a::b"]) | TEXTS)
def test_images_that_are_named_and_not_there(place, path):
    folder = place()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}], "label": [0]}, features).save_to_disk(str(folder))
    # The library would read what it is to save: so the path is put there afterwards.
    rows = pa.table({"image": [{"bytes": None, "path": path}], "label": [0]}, schema=features.arrow_schema)
    with pa.ipc.new_stream(next(folder.glob("*.arrow")), rows.schema) as writer:
        writer.write_table(rows)
    rejected = taken(folder, "ingest.hf_dataset", path=folder)
    assert not isinstance(rejected, list) or all(reason for _, reason in rejected)


def weights() -> dict[str, torch.Tensor]:
    shapes = {"body.0.weight": (2, 16), "body.0.bias": (2,), "body.2.weight": (2, 2), "body.2.bias": (2,), "head.weight": (3, 2), "head.bias": (3,)}
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def checkpoint() -> bytes:
    out = BytesIO()
    torch.save({"epoch": 3, "state_dict": weights()}, out)
    return out.getvalue()


MODELS = [save(weights()), checkpoint()]


@fuzz(50)
@given(data=st.sampled_from(MODELS).flatmap(damaged) | st.sampled_from(NOT_IMAGES), classes=st.binary(max_size=20) | st.just(b"a\nb\nc\n"))
def test_model(place, data, classes):
    folder = place()
    (folder / "model").write_bytes(data)
    (folder / "classes").write_bytes(classes)
    found = load("ingest.model")
    params = found.params(file=folder / "model", net="mlp:2", side_px=4, channels=1, mean=[0.5], std=[0.5], classes=folder / "classes")
    work = Work(device="cpu", threads=1, scratch=folder, draw=Draw(0, "ingest.model"))
    (unit,) = call(found.units, {"params": params})
    with nothing_outside(folder):
        refused_or_fine(lambda: list(call(found.fn, {"unit": unit, "inputs": {}, "params": params, "work": work})))


@fuzz(30)
@given(
    given_=st.dictionaries(
        st.sampled_from(["path", "id", "classes", "columns", "max_pixels", "shard_rows", "layout", "splits"]) | ODD_TEXT, ODD_VALUES, max_size=3
    )
)
def test_odd_parameters(place, given_):
    folder = place()
    (folder / "a").mkdir()
    (folder / "a" / "1.png").write_bytes(IMAGES[0])
    recipe = folder.parent / "place" / "recipe.yaml"
    for op in ("ingest.image_folder", "ingest.parquet", "ingest.hf_dataset"):
        stage = {"op": op, "path": str(folder), **given_}
        recipe.write_text(json.dumps({"name": "odd", "stages": {"raw": stage}}))
        from flows.resolve import resolve

        refused_or_fine(lambda: resolve(recipe))
