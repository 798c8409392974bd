"""ingest.idx on small files written here, by the format's description."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import tasks.ingest.idx as module
from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import decode
from stillroom.operators import call
from stillroom.stored import with_hashes
from tasks.ingest.idx import IdxParams, idx


def write(file: Path, array: np.ndarray, packed: bool = False) -> Path:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    data = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    file.write_bytes(gzip.compress(data) if packed else data)
    return file


def pair(folder: Path, labels: list[int], seed: int = 0, name: str = "train", packed: bool = False) -> tuple[np.ndarray, dict[str, Path]]:
    pixels_NHW = np.random.default_rng(seed).integers(0, 256, (len(labels), 5, 4), np.uint8)
    files = {"images": write(folder / f"{name}-images", pixels_NHW, packed), "labels": write(folder / f"{name}-labels", np.array(labels, np.uint8), packed)}
    return pixels_NHW, files


def ingest(**given: object) -> tuple[pa.Table, list[str | None]]:
    params = IdxParams(**given)
    schema = pa.schema(list(idx.added(params, {}).values()))
    batches, reasons = [], []
    for unit in call(idx.units, {"params": params}):
        for rows in idx(unit, params, with_hashes(schema)):
            batches.append(rows.batch)
            reasons += [None] * rows.batch.num_rows if rows.rejected is None else rows.rejected.to_pylist()
    return pa.Table.from_batches(batches, schema), reasons


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.integers(0, 255), max_size=30), packed=st.booleans(), shard_rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_gives_back_pixels_and_labels_for_any_cut_into_units(tmp_path, labels, packed, shard_rows, seed):
    pixels_NHW, files = pair(tmp_path, labels, seed, packed=packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARD_ROWS", shard_rows)
        table, reasons = ingest(**files)
    assert [decode(image)[..., 0].tolist() for image in table["image"].to_pylist()] == pixels_NHW.tolist()
    assert table["label"].to_pylist() == labels
    assert table["label_name"].to_pylist() == [str(label) for label in labels]
    assert not any(reasons)


def test_test_files_make_a_split_come_first_and_share_the_classes(tmp_path):
    _, train = pair(tmp_path, [0, 1])
    _, test = pair(tmp_path, [3], seed=1, name="test", packed=True)
    table, _ = ingest(**train, test_images=test["images"], test_labels=test["labels"])
    assert table.select(["label", "split", "source", "width", "height", "format"]).to_pylist() == [
        {"label": 3, "split": "test", "source": "test-images:0", "width": 4, "height": 5, "format": "png"},
        {"label": 0, "split": "train", "source": "train-images:0", "width": 4, "height": 5, "format": "png"},
        {"label": 1, "split": "train", "source": "train-images:1", "width": 4, "height": 5, "format": "png"},
    ]
    assert label_names(table.schema) == ["0", "1", "2", "3"]
    assert "split" not in ingest(**train)[0].schema.names


def test_a_label_beyond_the_classes_is_rejected_with_its_reason(tmp_path):
    _, files = pair(tmp_path, [1, 2, 0])
    table, reasons = ingest(**files, classes=["shirt", "boot"])
    assert reasons == [None, "label 2 out of range (2 classes)", None]
    assert table["label_name"].to_pylist() == ["boot", None, "shirt"]
    assert table["sample_id"].null_count == 0


def test_ids_by_content_follow_the_pixels_and_by_row_the_place(tmp_path):
    same = np.zeros((2, 3, 3), np.uint8)
    other_shape = np.zeros((1, 9, 1), np.uint8)
    labels = {"labels": write(tmp_path / "labels", np.zeros(2, np.uint8))}
    content = ingest(images=write(tmp_path / "images", same), **labels)[0]["sample_id"].to_pylist()
    assert content[0] == content[1]
    reshaped = ingest(images=write(tmp_path / "reshaped", other_shape), labels=write(tmp_path / "one", np.zeros(1, np.uint8)))[0]["sample_id"][0].as_py()
    assert reshaped != content[0], "the shape counts"
    assert ingest(images=tmp_path / "images", **labels, id="row")[0]["sample_id"].to_pylist() == ["train:0", "train:1"]


def test_broken_files_are_one_clear_error(tmp_path):
    _, files = pair(tmp_path, [1, 2, 0])
    whole = files["images"].read_bytes()
    cases = {
        "can't be read: No such file or directory": None,
        "is no idx file of unsigned bytes with 3 dimensions": b"\0\0\x0d\3" + whole[4:],
        "ends after 2 of 3 rows": whole[:-1],
        "is a broken gzip file": gzip.compress(whole)[:40],
        "claims images of 1000000000 x 4 pixels": whole[:8] + (10**9).to_bytes(4, "big") + whole[12:],
        "holds 3 labels, and broken 2 images": whole[:4] + (2).to_bytes(4, "big") + whole[8:],
    }
    for problem, data in cases.items():
        broken = tmp_path / "broken"
        broken.unlink(missing_ok=True)
        if data is not None:
            broken.write_bytes(data)
        with pytest.raises(InputError, match=problem):
            ingest(images=broken, labels=files["labels"])


def test_test_images_need_their_labels(tmp_path):
    with pytest.raises(ValidationError, match="test_images and test_labels go together"):
        IdxParams(images=tmp_path, labels=tmp_path, test_images=tmp_path)
