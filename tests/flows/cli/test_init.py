"""stillroom init: recipes that resolve as they are written, for what people really have."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.init import write_recipe
from flows.resolve import Graph, resolve
from stillroom.errors import InputError, StillroomError
from stillroom.images import encode_png

LABELLED = ["raw", "split", "unique", "clean", "teacher", "looks", "core", "reinforced", "proof"]


def png(seed: int, width: int = 24, height: int = 24, channels: int = 3) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


def images(folder: Path, count: int = 6, **size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"{seed}.png").write_bytes(png(seed, **size))


@pytest.fixture
def started(tmp_path: Path) -> Callable[[Path], Graph]:
    """Writes a recipe beside what it is for, and resolves it: every name, parameter, column and split in it is right."""

    def start(path: Path) -> Graph:
        write_recipe(path, tmp_path / "recipe.yaml")
        return resolve(tmp_path / "recipe.yaml")

    return start


def shown(graph: Graph) -> list[str]:
    return list(graph.recipe.stages)


def test_a_folder_a_class_gets_the_whole_road(tmp_path, started):
    for name in ("cat", "dog", "10", "2"):
        images(tmp_path / "My Pets" / name, width=40, height=32)
    graph = started(tmp_path / "My Pets")
    assert graph.recipe.name == "my-pets"
    assert shown(graph) == LABELLED
    assert graph.recipe.stages["raw"].params == {"path": "My Pets", "layout": "class_folders", "id": "content"}
    teacher = graph.stages["teacher"].params
    assert (teacher.side_px, teacher.channels, teacher.augment.flip) == (32, 3, True)
    assert "in 4 classes (2, 10, cat, dog), colour images of 40 x 32 pixels" in graph.recipe.text


def test_small_grey_images_are_not_mirrored_and_lose_no_twin_by_their_hash(tmp_path, started):
    for name in "01":
        images(tmp_path / "digits" / name, width=8, height=8, channels=1)
    graph = started(tmp_path / "digits")
    teacher = graph.stages["teacher"].params
    assert (teacher.side_px, teacher.channels, teacher.augment.flip) == (8, 1, False)
    assert graph.stages["reinforced"].params.views.policy == ("identity", "affine")
    assert graph.stages["clean"].params.mode == "tag"


def test_a_flat_folder_gets_no_labels(tmp_path, started):
    images(tmp_path / "flat", width=80, height=80)
    graph = started(tmp_path / "flat")
    assert shown(graph) == ["raw", "split", "unique", "clean", "looks", "core"]
    assert "label" not in graph.stages["raw"].schema.names
    assert graph.stages["clean"].params.mode == "drop"


def test_one_folder_alone_is_no_class(tmp_path, started):
    images(tmp_path / "photos" / "2024")
    assert started(tmp_path / "photos").recipe.stages["raw"].params["layout"] == "flat"


@pytest.mark.parametrize(
    ("folders", "shares"),
    [
        (["train", "val", "test"], {}),
        (["train", "test"], {"validation": "10%"}),
        (["training", "valid"], {"test": "10%"}),
        (["train"], {"validation": "10%", "test": "10%"}),
    ],
)
def test_splits_that_the_data_has_are_kept_and_the_others_made(tmp_path, started, folders, shares):
    for split in folders:
        for name in ("a", "b"):
            images(tmp_path / "data" / split / name)
    graph = started(tmp_path / "data")
    assert graph.recipe.stages["raw"].params["splits"] == "folders"
    assert graph.recipe.stages["split"].params == {"given": {"column": "split"}, **shares}
    assert graph.stages["split"].splits == {"train", "validation", "test"}


def test_files_that_are_no_images_raise_the_limit_on_rejects_and_are_named(tmp_path, started):
    for name in ("a", "b"):
        images(tmp_path / "data" / name, count=9)
        (tmp_path / "data" / name / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "data" / "README.txt").write_text("about")
    graph = started(tmp_path / "data")
    # 2 of 20 in the class folders and 1 of 21 in all: 14.3 %, and half as much again.
    assert graph.recipe.publish.require.max_rejects == 0.22
    assert "about 14.3% were found: files that are no images and files outside a class folder" in graph.recipe.text


def test_parquet_of_the_datasets_library(tmp_path, started):
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"fine_label": label, "img": {"_type": "Image"}}}})}
    images_ = pa.array([{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(8)])
    table = pa.table({"img": images_, "fine_label": pa.array([0, 1] * 4), "note": ["x"] * 8}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "pets.parquet")
    graph = started(tmp_path / "pets.parquet")
    assert shown(graph) == LABELLED
    assert graph.recipe.stages["raw"].params["columns"] == {"image": "img", "label": "fine_label"}
    assert "8 rows in 2 classes (cat, dog), colour images of 24 x 24 pixels" in graph.recipe.text


def test_parquet_with_a_split_and_ids_of_its_own(tmp_path, started):
    columns = {"sample_id": [f"s{seed}" for seed in range(8)], "picture": [png(seed) for seed in range(8)], "label": ["b", "a"] * 4}
    (tmp_path / "parts").mkdir()
    for part, split in enumerate(("train", "test")):
        pq.write_table(pa.table({**columns, "split": [split] * 8}), tmp_path / "parts" / f"{part}.parquet")
    graph = started(tmp_path / "parts")
    assert graph.recipe.stages["raw"].params["id"] == "column:sample_id"
    assert graph.recipe.stages["split"].params == {"given": {"column": "split"}, "validation": "10%"}


def test_parquet_of_text_gets_a_split_alone(tmp_path, started):
    pq.write_table(pa.table({"caption": ["one", "two"], "label": [0, 1]}), tmp_path / "text.parquet")
    assert shown(started(tmp_path / "text.parquet")) == ["raw", "split"]


def test_odd_names_stay_data(tmp_path, started):
    folder = tmp_path / "größe: 'x' # {y}\n- z"
    for name in ("a\nevil: {op: x}", "b"):
        images(folder / name)
    graph = started(folder)
    assert graph.stages["raw"].params.path == folder
    assert shown(graph) == LABELLED


def test_a_path_elsewhere_is_absolute(tmp_path):
    for name in "ab":
        images(tmp_path / "data" / name)
    (tmp_path / "recipes").mkdir()
    write_recipe(tmp_path / "data", tmp_path / "recipes" / "r.yaml")
    assert resolve(tmp_path / "recipes" / "r.yaml").stages["raw"].params.path == tmp_path / "data"


def fault(path: Path, out: Path) -> str:
    with pytest.raises(StillroomError) as raised:
        write_recipe(path, out)
    assert not out.exists()
    return str(raised.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds no files"),
        ({"a/x.txt": b"x", "b/y.txt": b"y"}, "none of 2 files looked at is an image; JPEG, PNG, GIF, BMP, TIFF, WebP and PPM are read"),
        ({"train-images-idx3-ubyte.gz": b""}, "isn't a folder of images; these look like the MNIST family's files: see `stillroom ops ingest.idx`"),
        (
            {"state.json": b"{}", "data.arrow": b""},
            "isn't a folder of images; this looks like a folder of the datasets library: see `stillroom ops ingest.hf_dataset`",
        ),
        (
            {"train/a/1.png": b"", "val/a/1.png": b"", "notes/1.png": b""},
            "holds 'train' and 'val', which are splits, and 'notes', which is none; move it elsewhere first",
        ),
        ({"x.parquet": b"no"}, "can't be read as Parquet: "),
    ],
)
def test_says_why_there_is_no_recipe_for_a_folder(tmp_path, files, problem):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert fault(folder, tmp_path / "r.yaml").startswith(problem)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"x": [1.0]}), "has no column that is images or text by its name and type; it has x: see `stillroom ops ingest.parquet`"),
        (pa.table({"image": pa.array([], pa.binary())}), "holds no rows"),
        (pa.table({"image": [b"no image"]}), "column 'image' holds no images; see `stillroom ops ingest.parquet`"),
        (pa.table({"text": ["a"], "split": ["spring"]}), "column 'split' holds 'spring', which is no split"),
    ],
)
def test_says_why_there_is_no_recipe_for_parquet(tmp_path, table, problem):
    pq.write_table(table, tmp_path / "x.parquet")
    assert fault(tmp_path / "x.parquet", tmp_path / "r.yaml").startswith(problem)


def test_says_that_nothing_is_there(tmp_path):
    assert fault(tmp_path / "nope", tmp_path / "r.yaml") == "no such file or folder"


@pytest.mark.skipif(os.name == "nt", reason="names on disk are bytes on POSIX alone")
def test_says_that_a_name_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    for name in "ab":
        images(folder / name)
    with pytest.raises(InputError, match="isn't UTF-8"):
        write_recipe(folder, tmp_path / "r.yaml")


def test_the_command_prints_where_the_recipe_is_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "flat")
    result = CliRunner().invoke(app, ["init", "flat"])
    assert (result.exit_code, result.stdout) == (0, "flat.yaml\n")
    assert result.stderr == "for 6 files, colour images of 24 x 24 pixels; go on with: stillroom plan flat.yaml\n"


def test_the_command_never_overwrites_a_recipe(tmp_path):
    images(tmp_path / "flat")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\n")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "flat"), "--out", str(recipe)])
    assert (result.exit_code, result.stderr) == (1, f"error: {recipe}: is there already; give another name with --out\n")
    assert recipe.read_text() == "name: mine\n"


def test_the_command_speaks_json(tmp_path):
    images(tmp_path / "flat")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "flat"), "--out", str(tmp_path / "r.yaml"), "--json"])
    assert json.loads(result.stdout) == {"recipe": str(tmp_path / "r.yaml"), "found": "6 files, colour images of 24 x 24 pixels"}
