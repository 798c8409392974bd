"""ingest.parquet: what others wrote comes out whole, with one schema, and what is wrong comes out with its row."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from stillroom.errors import InputError
from stillroom.fields import heavy_names, label_names
from stillroom.images import encode_png
from stillroom.operators import call
from stillroom.stored import with_hashes
from tasks.ingest.parquet import ParquetParams, parquet


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (3, 5, 1), np.uint8))


def ingest(path: Path, **given: object) -> tuple[pa.Table, list[str | None]]:
    """All rows, and for each the reason why it was rejected or None."""
    params = ParquetParams(path=path, **given)
    schema = pa.schema(list(parquet.added(params, {}).values()))
    batches, reasons = [], []
    for unit in call(parquet.units, {"params": params}):
        assert json.loads(json.dumps(unit.value)) == unit.value, "a unit's value travels as JSON"
        for rows in parquet(unit, params, with_hashes(schema)):
            assert rows.batch.schema == schema
            batches.append(rows.batch)
            reasons += [None] * rows.batch.num_rows if rows.rejected is None else rows.rejected.to_pylist()
    return pa.Table.from_batches(batches, schema), reasons


def write(file: Path, columns: dict[str, object] | pa.Table, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file, **options)
    return file


def test_roles_images_labels_and_the_rest(tmp_path):
    file = write(tmp_path / "a.parquet", {"jpg": [picture(1), picture(2)], "class": ["dog", "cat"], "caption": ["a dog", None], "weight": [1.5, 2.5]})
    table, reasons = ingest(file, columns={"image": "jpg", "label": "class", "text": "caption"})
    assert reasons == [None, None]
    assert heavy_names(table.schema) == ["image"]
    assert label_names(table.schema) == ["cat", "dog"]
    expected = {"width": 5, "height": 3, "format": "png"}
    assert table.to_pylist() == [
        expected
        | {
            "sample_id": blake3(picture(1)).hexdigest()[:32],
            "image": picture(1),
            "label": 1,
            "label_name": "dog",
            "text": "a dog",
            "source": "a.parquet:0",
            "weight": 1.5,
        },
        expected
        | {
            "sample_id": blake3(picture(2)).hexdigest()[:32],
            "image": picture(2),
            "label": 0,
            "label_name": "cat",
            "text": None,
            "source": "a.parquet:1",
            "weight": 2.5,
        },
    ]


VALUES = st.fixed_dictionaries(
    {
        "label": st.integers(0, 4),
        "text": st.text(max_size=5),
        "numbers": st.none() | st.lists(st.integers(-5, 5), max_size=3),
        "flag": st.none() | st.booleans(),
        "nested": st.none() | st.fixed_dictionaries({"a": st.none() | st.floats(-1, 1)}),
    }
)
SCHEMA = pa.schema({"label": pa.int32(), "text": pa.string(), "numbers": pa.list_(pa.int16()), "flag": pa.bool_(), "nested": pa.struct({"a": pa.float64()})})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(VALUES, min_size=1, max_size=30), group=st.integers(1, 12), shard=st.integers(1, 12), parts=st.integers(1, 3))
def test_every_value_comes_back_for_any_files_row_groups_and_units(tmp_path_factory, rows, group, shard, parts):
    folder = tmp_path_factory.mktemp("set")
    places = []
    for part in range(parts):
        own = rows[part::parts]
        write(folder / f"{part}.parquet", pa.Table.from_pylist(own, SCHEMA), row_group_size=group)
        places += [(row, f"{part}.parquet:{index}") for index, row in enumerate(own)]
    table, reasons = ingest(folder, id="row", shard_rows=shard, classes=["a", "b", "c", "d", "e"])
    assert not any(reasons)
    assert table["sample_id"].to_pylist() == [place for _, place in places]
    assert table.select(SCHEMA.names).to_pylist() == [row for row, _ in places]
    assert table["label_name"].to_pylist() == ["abcde"[row["label"]] for row, _ in places]


def test_one_unreadable_image_is_one_reject_among_a_thousand(tmp_path):
    images = [picture(0)] * 1000
    images[500] = b"\x89PNG\r\n\x1a\nnothing"
    table, reasons = ingest(write(tmp_path / "a.parquet", {"image": images}), id="row")
    assert table.num_rows == 1000
    assert [index for index, reason in enumerate(reasons) if reason] == [500]
    assert table["image"].null_count == 1


def test_images_of_the_datasets_library_and_their_class_names(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": picture(1), "path": None}, {"bytes": None, "path": "/etc/hostname"}, None], "label": [0, 1, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows, reasons = ingest(write(tmp_path / "a.parquet", table))
    assert label_names(rows.schema) == ["zebra", "ant"]
    assert rows["image"].to_pylist() == [picture(1), None, None]
    assert reasons == [None, "no image bytes, and the path '/etc/hostname' isn't part of the source", "no image"]
    assert rows["sample_id"].to_pylist()[1:] == ["a.parquet:1", "a.parquet:2"], "an id for every row, whatever it lacks"


def test_an_image_that_is_not_plain_is_stored_upright(tmp_path):
    out = BytesIO()
    exif = Image.Exif()
    exif[274] = 8
    Image.new("RGB", (6, 4)).save(out, "JPEG", exif=exif)
    table, _ = ingest(write(tmp_path / "a.parquet", {"image": [out.getvalue()]}))
    assert table.select(["width", "height", "format"]).to_pylist() == [{"width": 4, "height": 6, "format": "jpeg"}]


def test_labels_out_of_range_null_or_unknown_are_rejected(tmp_path):
    numbers = write(tmp_path / "numbers.parquet", {"label": [0, 12, None, -1], "text": ["a", "b", "c", "d"]})
    table, reasons = ingest(numbers, classes=[str(index) for index in range(10)])
    assert reasons == [None, "label 12 out of range (10 classes)", "label is null", "label -1 out of range (10 classes)"]
    assert table["label"].to_pylist() == [0, None, None, None]
    texts = write(tmp_path / "texts.parquet", {"label": ["dog", "emu"], "text": ["a", "b"]})
    assert ingest(texts, classes=["cat", "dog"])[1] == [None, "label 'emu' is not in classes"]


def test_class_names_found_are_ordered_by_number(tmp_path):
    write(tmp_path / "a.parquet", {"label": ["10", "2"], "text": ["a", "b"]})
    write(tmp_path / "b.parquet", {"label": pa.array(["1"]).dictionary_encode(), "text": ["c"]})
    table, _ = ingest(tmp_path)
    assert label_names(table.schema) == ["1", "2", "10"]
    assert table["label"].to_pylist() == [2, 1, 0]
    gaps, _ = ingest(write(tmp_path / "gaps/c.parquet", {"label": [3, 1], "text": ["a", "b"]}))
    assert label_names(gaps.schema) == ["0", "1", "2", "3"], "numbers keep their value as index"
    flags, _ = ingest(write(tmp_path / "flags/d.parquet", {"label": [True, False], "text": ["a", "b"]}))
    assert flags["label_name"].to_pylist() == ["true", "false"]


def test_one_schema_over_all_files(tmp_path):
    write(tmp_path / "a.parquet", {"text": ["x"], "a": pa.nulls(1), "meta": [{"k": 1}], "n": pa.array([1], pa.int32())})
    write(tmp_path / "b.parquet", {"text": ["y"], "a": ["x"], "meta": pa.array([{"extra": "e", "k": 2}]), "n": pa.array([2], pa.int64()), "late": [True]})
    table, _ = ingest(tmp_path, id="row")
    assert table.select(["a", "meta", "n", "late"]).to_pylist() == [
        {"a": None, "meta": {"k": 1, "extra": None}, "n": 1, "late": None},
        {"a": "x", "meta": {"k": 2, "extra": "e"}, "n": 2, "late": True},
    ]
    assert table.schema.field("a").type == pa.string()


def test_large_view_and_dictionary_types_become_plain_ones(tmp_path):
    columns = {
        "text": pa.array(["x"], pa.large_string()),
        "view": pa.array(["v"], pa.string_view()),
        "code": pa.array(["c"]).dictionary_encode(),
        "deep": pa.array([[b"b"]], pa.large_list(pa.large_binary())),
    }
    table, _ = ingest(write(tmp_path / "a.parquet", columns))
    assert [table.schema.field(name).type for name in ("text", "view", "code")] == [pa.string()] * 3
    assert pa.types.is_list(table.schema.field("deep").type)
    assert table.schema.field("deep").type.value_type == pa.binary()
    assert table.select(list(columns)).to_pylist() == [{"text": "x", "view": "v", "code": "c", "deep": [b"b"]}]


def test_files_with_other_class_names_are_not_mixed(tmp_path):
    for name, names in {"a": ["cat", "dog"], "b": ["dog", "cat"]}.items():
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"label": [0], "text": [name]}).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        write(tmp_path / f"{name}.parquet", table)
    with pytest.raises(InputError, match=r"b\.parquet: column 'label' has other class names than in a\.parquet"):
        ingest(tmp_path)


def test_types_that_do_not_agree_are_named_with_their_files(tmp_path):
    write(tmp_path / "a.parquet", {"text": ["x"], "n": [1]})
    write(tmp_path / "b.parquet", {"text": ["y"], "n": ["two"]})
    with pytest.raises(InputError, match=r"b\.parquet: column 'n' is string, and int64 in a\.parquet"):
        ingest(tmp_path)
    write(tmp_path / "b.parquet", {"text": ["y"], "n": [0.5]})
    write(tmp_path / "a.parquet", {"text": ["x"], "n": [2**60 + 1]})
    with pytest.raises(InputError, match=r"a\.parquet: column 'n': .*; write it as double in all files"):
        ingest(tmp_path)


def test_null_and_repeated_ids_are_rejected_with_their_rows(tmp_path):
    write(tmp_path / "a.parquet", {"text": list("pqrs"), "key": ["k", None, "l", "k"]})
    write(tmp_path / "b.parquet", {"text": list("tu"), "key": ["m", "l"]})
    table, reasons = ingest(tmp_path, id="column:key", shard_rows=1)
    assert reasons == [
        None,
        "id is null (row 1)",
        None,
        "duplicate id 'k' (row 3; first at a.parquet:0)",
        None,
        "duplicate id 'l' (row 1; first at a.parquet:2)",
    ]
    assert table["sample_id"].to_pylist() == ["k", "a.parquet:1", "l", "k", "m", "l"]
    assert table["key"].to_pylist() == ["k", None, "l", "k", "m", "l"], "the column itself passes through"


@pytest.mark.parametrize(("keys", "ids"), [(pa.array([b"\1\2"], pa.binary(2)), ["0102"]), (pa.array([b"\xff"]), ["ff"]), (pa.array([7], pa.uint16()), ["7"])])
def test_ids_become_text(tmp_path, keys, ids):
    table, _ = ingest(write(tmp_path / "a.parquet", {"text": ["x"], "key": keys}), id="column:key")
    assert table["sample_id"].to_pylist() == ids


def test_what_we_made_comes_in_again(tmp_path):
    first, _ = ingest(write(tmp_path / "a.parquet", {"image": [picture(1)], "label": ["cat"], "split": ["val"]}))
    assert first["split"].to_pylist() == ["validation"]
    again, reasons = ingest(write(tmp_path / "again/b.parquet", first), id="column:sample_id")
    assert reasons == [None]
    assert again == first


def test_a_split_that_is_none_is_rejected(tmp_path):
    _, reasons = ingest(write(tmp_path / "a.parquet", {"text": ["x", "y", "z"], "fold": ["dev", "holdout", None]}), columns={"split": "fold"})
    assert reasons == [None, "split 'holdout' is none of train, validation, test", "split is null"]


@pytest.mark.parametrize(
    ("columns", "given", "problem"),
    [
        ({"a": [1]}, {}, "has no image or text to make ids from; give `id: row`"),
        ({"text": ["x"]}, {"columns": {"label": "class"}}, "has no column 'class'; it has text"),
        ({"text": ["x"]}, {"id": "column:key"}, "has no column 'key'"),
        ({"text": ["x"], "key": [1.5]}, {"id": "column:key"}, "column 'key' of type double can't be the id"),
        ({"image": ["a.png"]}, {}, "column 'image' of type string can't be the image"),
        ({"label": [0.5], "text": ["x"]}, {}, "column 'label' of type double can't be the label"),
        ({"text": ["x"], "sample_id": ["a"]}, {}, "give `id: column:sample_id`"),
        ({"text": ["x"], "caption": ["y"]}, {"columns": {"text": "caption"}}, "has a column 'text' beside 'caption'"),
        ({"text": ["x"], "label": [70_000]}, {}, "holds more than 65,536 classes"),
    ],
)
def test_columns_that_do_not_fit_are_one_clear_error(tmp_path, columns, given, problem):
    with pytest.raises(InputError, match=problem):
        ingest(write(tmp_path / "a.parquet", columns), **given)


def test_files_that_are_not_there_or_no_parquet_are_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        ingest(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no \*\.parquet files"):
        ingest(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(InputError, match=r"a\.parquet: can't be read as Parquet"):
        ingest(tmp_path)


def test_parameters_are_checked(tmp_path):
    with pytest.raises(ValidationError, match="columns"):
        ParquetParams(path=tmp_path, columns={"picture": "jpg"})
    with pytest.raises(ValidationError, match="id"):
        ParquetParams(path=tmp_path, id="uid")


def test_a_page_that_is_damaged_is_one_line(tmp_path):
    file = write(tmp_path / "a.parquet", {"text": [f"text {n}" for n in range(100)]}, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    data[4:30] = b"\xff" * 26  # the first page's header; the footer, which is read first, stays
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet: can't be read as Parquet: "):
        ingest(file)
