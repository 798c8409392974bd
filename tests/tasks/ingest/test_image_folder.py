"""ingest.image_folder on folders as people have them: odd names, broken files, missing classes."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from PIL import Image
from pydantic import ValidationError

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import decode, encode_png
from stillroom.operators import call
from stillroom.stored import with_hashes
from tasks.ingest.image_folder import ImageFolderParams, image_folder


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (6, 4), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


def ingest(path: Path, **given: object) -> tuple[pa.Table, dict[str, str]]:
    """The kept rows, and the reasons of the rejected ones by source."""
    params = ImageFolderParams(path=path, **given)
    schema = pa.schema(list(image_folder.added(params, {}).values()))
    kept, reasons = [], {}
    for unit in call(image_folder.units, {"params": params}):
        for rows in image_folder(unit, params, with_hashes(schema)):
            assert rows.batch.schema == schema
            rejected = pa.nulls(rows.batch.num_rows, pa.string()) if rows.rejected is None else rows.rejected
            kept.append(rows.batch.filter(rejected.is_null()))
            reasons |= {source: reason for source, reason in zip(rows.batch["source"].to_pylist(), rejected.to_pylist(), strict=True) if reason}
    return pa.Table.from_batches(kept, schema), reasons


def test_images_stay_as_found_with_label_size_and_format(tmp_path):
    png, jpeg = picture(1), picture(2, "JPEG", size=(9, 5))
    table, reasons = ingest(lay_out(tmp_path, {"dog/b.png": png, "cat/deep/a.JPEG": jpeg}))
    assert reasons == {}
    assert table.drop_columns("image").to_pylist() == [
        {"sample_id": blake3(jpeg).hexdigest()[:32], "width": 9, "height": 5, "format": "jpeg", "label": 0, "label_name": "cat", "source": "cat/deep/a.JPEG"},
        {"sample_id": blake3(png).hexdigest()[:32], "width": 6, "height": 4, "format": "png", "label": 1, "label_name": "dog", "source": "dog/b.png"},
    ]
    assert table["image"].to_pylist() == [jpeg, png]


def test_class_folders_are_ordered_by_number(tmp_path):
    lay_out(tmp_path, {"10/a.png": picture(1), "2/a.png": picture(2), "1/a.png": picture(3)})
    table, _ = ingest(tmp_path)
    assert label_names(table.schema) == ["1", "2", "10"]
    assert dict(zip(table["label_name"].to_pylist(), table["label"].to_pylist(), strict=True)) == {"1": 0, "2": 1, "10": 2}


def test_labels_agree_over_splits_when_one_lacks_a_class(tmp_path):
    lay_out(
        tmp_path,
        {"train/1/a.png": picture(1), "train/2/a.png": picture(2), "train/10/a.png": picture(3), "val/10/a.png": picture(4), "test/2/a.png": picture(5)},
    )
    table, _ = ingest(tmp_path, splits="folders")
    assert label_names(table.schema) == ["1", "2", "10"]
    assert sorted(zip(table["split"].to_pylist(), table["label_name"].to_pylist(), table["label"].to_pylist(), strict=True)) == [
        ("test", "2", 1),
        ("train", "1", 0),
        ("train", "10", 2),
        ("train", "2", 1),
        ("validation", "10", 2),
    ]


def test_held_out_splits_come_first_so_that_theirs_stay_of_equal_images(tmp_path):
    lay_out(tmp_path, {f"{split}/cat/a.png": picture(1) for split in ("train", "val", "test")})
    table, _ = ingest(tmp_path, splits="folders", shard_rows=1)
    assert table["split"].to_pylist() == ["test", "validation", "train"]


def test_declared_classes_set_the_order_and_reject_the_rest(tmp_path):
    lay_out(tmp_path, {"cat/a.png": picture(1), "dog/a.png": picture(2), "cow/a.png": picture(3)})
    table, reasons = ingest(tmp_path, classes=["dog", "emu", "cat"])
    assert label_names(table.schema) == ["dog", "emu", "cat"]
    assert table["label"].to_pylist() == [2, 0]
    assert reasons == {"cow/a.png": "class folder 'cow' is not in classes"}
    with pytest.raises(ValidationError, match="class 'dog' is named twice"):
        ImageFolderParams(path=tmp_path, classes=["dog", "dog"])


def test_a_flat_folder_has_no_labels_and_only_when_declared(tmp_path):
    lay_out(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    with pytest.raises(InputError, match="holds no class folders; give `layout: flat`"):
        ingest(tmp_path)
    table, reasons = ingest(tmp_path, layout="flat")
    assert reasons == {}
    assert "label" not in table.schema.names
    assert table["source"].to_pylist() == ["a.png", "b.png"]


@pytest.mark.parametrize("shard_rows", [1, 3, 2048])
def test_one_cut_jpeg_is_one_reject(tmp_path, shard_rows):
    pictures = {f"cat/{index}.jpg": picture(index, "JPEG", size=(40, 40)) for index in range(10)}
    pictures["cat/5.jpg"] = pictures["cat/5.jpg"][: len(pictures["cat/5.jpg"]) * 6 // 10]
    table, reasons = ingest(lay_out(tmp_path, pictures), shard_rows=shard_rows)
    assert table["source"].to_pylist() == [f"cat/{index}.jpg" for index in range(10) if index != 5]
    assert reasons == {"cat/5.jpg": f"truncated image (bytes missing after {len(pictures['cat/5.jpg']):,})"}


def test_padding_a_cut_jpeg_is_recorded_in_the_row(tmp_path):
    whole = picture(1, "JPEG", size=(40, 40))
    lay_out(tmp_path, {"a.jpg": whole, "b.jpg": whole[: len(whole) * 6 // 10]})
    table, reasons = ingest(tmp_path, layout="flat", truncated="pad")
    assert reasons == {}
    assert table["padded"].to_pylist() == [False, True]
    assert table["format"].to_pylist() == ["jpeg", "jpeg"]
    assert decode(table["image"][1].as_py()).shape == (40, 40, 3), "whole for whoever reads it next"


def test_what_is_not_plain_is_stored_as_an_upright_png_with_its_own_format(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    turned = picture(1, "JPEG", size=(24, 16), exif=exif)
    table, _ = ingest(lay_out(tmp_path, {"a.jpg": turned}), layout="flat")
    assert (table["width"][0].as_py(), table["height"][0].as_py(), table["format"][0].as_py()) == (16, 24, "jpeg")
    assert table["image"][0].as_py() == encode_png(decode(turned))
    assert table["sample_id"][0].as_py() == blake3(turned).hexdigest()[:32]


def test_the_format_is_that_of_the_content(tmp_path):
    table, reasons = ingest(lay_out(tmp_path, {"a.JPEG": picture(1, "PNG"), "b.txt": picture(2, "BMP")}), layout="flat")
    assert reasons == {}
    assert table["format"].to_pylist() == ["png", "bmp"]


def test_every_file_that_is_no_image_is_rejected_with_its_reason(tmp_path):
    lay_out(
        tmp_path,
        {
            "cat/a.png": picture(1),
            "cat/notes.txt": b"a tabby",
            "cat/empty.png": b"",
            "cat/.DS_Store": b"x",
            ".git/config": b"x",
            "README": picture(2),
            "cat/big.png": picture(3, size=(50, 50)),
        },
    )
    (tmp_path / "cat/gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "cat/pipe")
    table, reasons = ingest(tmp_path, max_bytes=5000, max_pixels=100)
    assert table["source"].to_pylist() == ["cat/a.png"]
    assert reasons == {
        "README": "not in a class folder",
        "cat/big.png": f"{len(picture(3, size=(50, 50))):,} bytes > limit 5,000",
        "cat/empty.png": "empty file",
        "cat/gone.png": "can't be read: No such file or directory",
        "cat/notes.txt": "not an image (jpeg, png, gif, bmp, tiff, webp or ppm expected)",
        "cat/pipe": "not a regular file",
    }
    _, reasons = ingest(tmp_path, max_pixels=100)
    assert reasons["cat/big.png"] == "2,500 pixels > limit 100"


def test_names_keep_their_exact_bytes(tmp_path):
    bengali, newline, emoji = "ক" * 80 + ".png", "two\nlines.png", "🐱.png"
    nfc, nfd = "\u00e9.png", "e\u0301.png"
    names = [bengali, newline, emoji, nfc, nfd, "a%20b.png", "22.05.png"]
    lay_out(tmp_path, {f"cat/{name}": picture(index) for index, name in enumerate(names)})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat/\xff.png")).write_bytes(picture(99))
    table, reasons = ingest(tmp_path, id="path")
    assert reasons == {}
    assert set(table["sample_id"].to_pylist()) == {f"cat/{name}" for name in names} | {"cat/\\xff.png"}
    assert table["sample_id"].to_pylist() == table["source"].to_pylist()


def test_an_id_by_content_survives_a_move_and_an_id_by_path_does_not(tmp_path):
    before, _ = ingest(lay_out(tmp_path / "before", {"a.png": picture(1)}), layout="flat")
    after, _ = ingest(lay_out(tmp_path / "after", {"moved/b.png": picture(1)}), layout="flat")
    assert before["sample_id"] == after["sample_id"]
    by_path, _ = ingest(tmp_path / "after", layout="flat", id="path")
    assert by_path["sample_id"].to_pylist() == ["moved/b.png"]


def test_links_are_followed_and_loops_are_named(tmp_path):
    lay_out(tmp_path, {"store/a.png": picture(1)})
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cat").symlink_to(tmp_path / "store")
    table, _ = ingest(tmp_path / "set")
    assert table["source"].to_pylist() == ["cat/a.png"]
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    with pytest.raises(InputError, match="loop: is a symbolic link to a folder that holds it"):
        ingest(tmp_path / "set")


@pytest.mark.parametrize(
    ("files", "given", "problem"),
    [
        (None, {}, "no such folder"),
        ({"": b"x"}, {}, "is a file, and a folder of images was expected"),
        ({"cat/.hidden": b"x"}, {}, "holds no files"),
        ({"train/cat/a.png": b"x", "extra/cat/a.png": b"x"}, {"splits": "folders"}, "'extra' is no split"),
        ({"a.png": b"x"}, {"splits": "folders"}, "but it holds no folders"),
        ({"train/a.png": b"x"}, {"splits": "folders"}, "holds no class folders"),
    ],
)
def test_a_folder_that_is_not_as_declared_is_one_clear_error(tmp_path, files, given, problem):
    root = tmp_path / "set"
    for name, data in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    with pytest.raises(InputError, match=problem):
        ingest(root, **given)


def test_a_file_beside_the_splits_is_rejected(tmp_path):
    lay_out(tmp_path, {"train/cat/a.png": picture(1), "list.csv": b"a,b"})
    _, reasons = ingest(tmp_path, splits="folders")
    assert reasons == {"list.csv": "not in the folder of a split"}
