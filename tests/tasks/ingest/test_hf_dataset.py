"""ingest.hf_dataset on folders that the `datasets` library itself wrote."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import decode, encode_png
from stillroom.operators import call
from stillroom.stored import with_hashes
from tasks.ingest.hf_dataset import HfDatasetParams, hf_dataset

FEATURES = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["zebra", "ant"]), "note": datasets.Value("large_string")})


def dataset(*shades: int) -> datasets.Dataset:
    pixels = [np.full((2, 3, 1), shade, np.uint8) for shade in shades]
    columns = {
        "picture": [{"bytes": encode_png(image), "path": None} for image in pixels],
        "kind": [shade % 2 for shade in shades],
        "note": [f"shade {shade}" for shade in shades],
    }
    return datasets.Dataset.from_dict(columns, FEATURES)


def ingest(path: Path, **given: object) -> tuple[pa.Table, list[str | None]]:
    params = HfDatasetParams(path=path, **given)
    schema = pa.schema(list(hf_dataset.added(params, {}).values()))
    batches, reasons = [], []
    for unit in call(hf_dataset.units, {"params": params}):
        for rows in hf_dataset(unit, params, with_hashes(schema)):
            assert rows.batch.schema == schema
            batches.append(rows.batch)
            reasons += [None] * rows.batch.num_rows if rows.rejected is None else rows.rejected.to_pylist()
    return pa.Table.from_batches(batches, schema), reasons


@pytest.fixture(autouse=True)
def _nothing_is_decoded_by_the_library(monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("datasets decoded an image"))


def test_features_keep_their_meaning(tmp_path):
    dataset(0, 3).save_to_disk(tmp_path / "set")
    table, reasons = ingest(tmp_path / "set")
    assert reasons == [None, None]
    assert label_names(table.schema) == ["zebra", "ant"]
    assert table.drop_columns(["image", "sample_id"]).to_pylist() == [
        {"width": 3, "height": 2, "format": "png", "label": 0, "label_name": "zebra", "source": "row:0", "note": "shade 0"},
        {"width": 3, "height": 2, "format": "png", "label": 1, "label_name": "ant", "source": "row:1", "note": "shade 3"},
    ]
    assert [decode(image)[0, 0, 0] for image in table["image"].to_pylist()] == [0, 3]
    assert table.schema.field("note").type == pa.string()


def test_its_splits_become_a_column_or_one_is_read_alone(tmp_path):
    datasets.DatasetDict({"train": dataset(0, 1), "validation": dataset(2), "test": dataset(3)}).save_to_disk(tmp_path / "set")
    table, _ = ingest(tmp_path / "set")
    assert table.select(["split", "source"]).to_pylist() == [
        {"split": "test", "source": "test:0"},
        {"split": "validation", "source": "validation:0"},
        {"split": "train", "source": "train:0"},
        {"split": "train", "source": "train:1"},
    ]
    alone, _ = ingest(tmp_path / "set", split="test")
    assert alone["note"].to_pylist() == ["shade 3"]
    assert "split" not in alone.schema.names


def test_rows_chosen_by_an_index_come_in_its_order(tmp_path):
    dataset(0, 1, 2, 3).select([3, 0]).save_to_disk(tmp_path / "set")
    assert ingest(tmp_path / "set")[0]["note"].to_pylist() == ["shade 3", "shade 0"]


def test_a_folder_of_images_is_read_with_its_classes(tmp_path):
    for split, name, shade in [("train", "cow", 1), ("train", "ape", 2), ("test", "ape", 3)]:
        folder = tmp_path / "set" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), shade).save(folder / f"{shade}.png")
    table, reasons = ingest(tmp_path / "set")
    assert not any(reasons)
    rows = zip(table["split"].to_pylist(), table["label_name"].to_pylist(), [int(decode(image)[0, 0, 0]) for image in table["image"].to_pylist()], strict=True)
    assert sorted(rows) == [("test", "ape", 3), ("train", "ape", 2), ("train", "cow", 1)]


def test_a_folder_of_parquet_is_read(tmp_path):
    (tmp_path / "set").mkdir()
    dataset(0, 1, 2).to_parquet(tmp_path / "set" / "train.parquet")
    table, _ = ingest(tmp_path / "set")
    assert table.select(["label_name", "split"]).to_pylist() == [{"label_name": name, "split": "train"} for name in ("zebra", "ant", "zebra")]


def test_faults_are_rejected_with_their_reason(tmp_path):
    whole = encode_png(np.zeros((1, 1, 1), np.uint8))
    images = [{"bytes": b"rubbish", "path": None}, {"bytes": None, "path": "/etc/hostname"}, {"bytes": whole, "path": None}]
    features = datasets.Features({"image": datasets.Image(), "key": datasets.Value("string")})
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"image": images, "key": ["a", "b", "a"]}, schema=features.arrow_schema), tmp_path / "rows" / "train.parquet")
    _, reasons = ingest(tmp_path / "rows", id="column:key")
    assert reasons == [
        "not an image (jpeg, png, gif, bmp, tiff, webp or ppm expected)",
        "the path '/etc/hostname' lies outside the source",
        "duplicate id 'a' (row 2; first at train:0)",
    ]


def test_what_can_not_be_read_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such folder; the Hub isn't asked"):
        ingest(Path("mnist"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"datasets can't read it: .* doesn't contain any data files"):
        ingest(tmp_path / "empty")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="holds data for the reader 'csv' of datasets"):
        ingest(tmp_path / "csv")
    datasets.DatasetDict({"odd": dataset(0)}).save_to_disk(tmp_path / "odd")
    with pytest.raises(InputError, match="split 'odd' is none of train, validation, test; give `split: odd`"):
        ingest(tmp_path / "odd")
    with pytest.raises(InputError, match="has no split 'test'; it has odd"):
        ingest(tmp_path / "odd", split="test")
    dataset(0).save_to_disk(tmp_path / "single")
    with pytest.raises(InputError, match="has no splits, and so no 'test'"):
        ingest(tmp_path / "single", split="test")


def test_two_images_need_a_word(tmp_path):
    features = datasets.Features({"before": datasets.Image(), "after": datasets.Image()})
    image = {"bytes": encode_png(np.zeros((1, 1, 1), np.uint8)), "path": None}
    datasets.Dataset.from_dict({"before": [image], "after": [image]}, features).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="has 2 columns that may be the image: before, after"):
        ingest(tmp_path / "set")
    assert ingest(tmp_path / "set", columns={"image": "after"})[1] == [None]


@pytest.mark.parametrize(("path", "says"), [("x" * 300, "File name too long"), ("a\0b", "embedded null byte"), ("../x.png", "lies outside the source")])
def test_an_image_that_is_named_by_no_possible_path_is_rejected(tmp_path, path, says):
    (tmp_path / "rows").mkdir()
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(pa.table({"image": [{"bytes": None, "path": path}]}, schema=features.arrow_schema), tmp_path / "rows" / "train.parquet")
    _, (reason,) = ingest(tmp_path / "rows")
    assert says in str(reason)


@pytest.mark.parametrize("value", [[], "x", {"features": []}, {"features": {"kind": {"_type": ["ClassLabel"]}}}])
def test_a_description_of_another_shape_is_one_line(tmp_path, value):
    dataset(0, 3).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "dataset_info.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="set: datasets can't read it: "):
        ingest(tmp_path / "set")
