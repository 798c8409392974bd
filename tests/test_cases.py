"""Cases that fit no single room, each named by its id, and a check that every test in the table of cases is there.

The table in `tests/README.md` says which test proves which case.
"""

import json
import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import softmax

import stillroom
from flows.build import build_recipe
from flows.plan import make_plan
from stillroom import registry
from stillroom.datasets import TorchSplit, loader
from stillroom.errors import StillroomError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.snapshots import manifest_of
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.stores import Store
from stillroom.tables import MemoryTable
from storage.verify import verify
from tasks.reinforce.views import ViewsParams
from tests.fuzz.builds import Killed, build, dying
from tests.photos import paint

TESTS = Path(__file__).parent


def photos(folder: Path, count: int, side_px: int = 6) -> Path:
    for number in range(count):
        paint(folder, number, side_px=side_px, channels=3)
    return folder / "photos"


def test_every_case_in_the_table_names_a_test_that_is_there():
    table = re.findall(r"^\| ([A-Z]\d\d) \| (.+) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
    assert len({case for case, _ in table}) == len(table) >= 43
    for case, tests in table:
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", tests) or [("", "")]:
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), f"{case}: {file}::{name}"


def test_s06_a_filter_with_a_plain_literal_works_on_what_came_in_as_large_string(recipe, store, tmp_path):
    for name, kind in (("a", pa.large_string()), ("b", pa.string_view())):
        pq.write_table(pa.table({"key": pa.array([f"{name}1", f"{name}2"], kind), "text": [f"{name} one", f"{name} two"]}), tmp_path / f"{name}.parquet")
    path = recipe("name: texts\nstages:\n  raw: {op: ingest.parquet, path: '.', id: 'column:key'}\npublish:\n  splits: {train: raw}\n")
    build(path, store)
    table = lance.dataset(store / "texts.lance")
    assert table.to_table(filter="sample_id = 'b2'")["text"].to_pylist() == ["b two"]
    assert table.schema.field("key").type == pa.string()


def test_s11_logits_beyond_float16_do_not_become_infinite():
    # Logits of 70,000, which float16 takes for infinity, become probabilities before they are stored.
    logits = np.array([[70_000.0, -70_000.0, 0.0], [0.2, 0.3, 0.5]])
    stored = encode(softmax(logits, axis=1), None)
    found = decode(stored, 3)
    assert soft_label_type(3, None) == stored.type and np.isfinite(found).all() and np.allclose(found, softmax(logits, axis=1), atol=1e-3)


def test_c03_a_teacher_counts_by_its_weights_not_by_where_they_lie(recipe, store, tmp_path):
    shapes = {"body.0.weight": (2, 16), "body.0.bias": (2,), "body.2.weight": (2, 2), "body.2.bias": (2,), "head.weight": (2, 2), "head.bias": (2,)}
    for name, value in (("a", 1.0), ("copy/b", 1.0), ("c", 2.0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({tensor: torch.full(shape, value) for tensor, shape in shapes.items()}, tmp_path / name)

    def prints(file: str) -> str:
        text = f"name: t\nstages:\n  teacher: {{op: ingest.model, file: {file}, net: 'mlp:2', side_px: 4, channels: 1, mean: [0.5], std: [0.5], classes: [x, y]}}\n"
        return make_plan(recipe(text), store).stages[0].prints.table

    assert prints("a") == prints("copy/b") != prints("c")


def seen_by_a_trainer(rows: int, num_workers: int, batch_size: int, epochs: int = 2) -> list[dict[str, bytes]]:
    """For each epoch, in the order of the samples, the bytes of each one's view."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["x", "y"])])
    table = pa.table([[f"s{row}" for row in range(rows)], [encode_png(image) for image in pixels], [row % 2 for row in range(rows)]], schema=schema)
    drawn = stillroom.apply("reinforce.views", table, count=4, policy=["crop", "flip", "affine"]).kept["views"]
    field = registry.load("reinforce.views").added(ViewsParams(policy=("crop", "flip", "affine")), {"samples": schema})["views"]
    views = drawn.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(field.type)
    batches = loader(TorchSplit(MemoryTable(table.append_column(field, views)), views="stored", seed=3), batch_size=batch_size, num_workers=num_workers)
    return [{name: image.numpy().tobytes() for batch in batches for name, image in zip(batch["sample_id"], batch["image"], strict=True)} for _ in range(epochs)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores are meant
def test_d01_workers_and_batch_size_have_no_part_in_what_a_trainer_sees():
    seen = {str([list(epoch.items()) for epoch in seen_by_a_trainer(64, workers, batch)]) for workers, batch in ((1, 7), (2, 64), (5, 7), (0, 64))}
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores are meant
def test_d02_no_two_workers_and_no_two_epochs_show_the_same_view():
    first, again = seen_by_a_trainer(8, 4, 1), seen_by_a_trainer(8, 4, 1)
    assert first == again and list(first[0]) != list(first[1])
    assert len({view for epoch in first for view in epoch.values()}) == 16


RESUMED = """name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos, shard_rows: 2}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  sound: {op: filter.decodable, from: split}
  core: {op: prune.random, from: sound.train, keep: 50%}
publish:
  splits: {train: core, test: sound.test}
"""


def timeless(value: Any) -> Any:
    """Without what may differ between two builds of the same: times, numbers of versions, names of files."""
    if isinstance(value, dict):
        left_out = ("created", "seconds", "version", "files", "bytes", "environment", "state")
        return {name: timeless(item) for name, item in value.items() if name not in left_out}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_c12_r04_a_build_killed_again_and_again_tells_the_same_in_the_end(recipe, tmp_path):
    photos(tmp_path, 24)
    path = recipe(RESUMED)
    with dying(tmp_path / "once", None) as writes:
        build(path, tmp_path / "once")
    assert len(writes) > 60
    deaths = 0
    for death in (9, 25, 26, 33, 40):
        with dying(tmp_path / "often", death):
            try:
                build(path, tmp_path / "often")
            except Killed:
                deaths += 1
    assert deaths >= 3
    build(path, tmp_path / "often")
    once, often = (timeless(manifest_of("pets@1", tmp_path / name)) for name in ("once", "often"))
    assert once == often
    pages = [re.sub(r"\d+(\.\d+)? s\b|\d\d:\d\d|checksum \w+", "", (tmp_path / name / "snapshots/pets/1.html").read_text()) for name in ("once", "often")]
    assert len(pages[0]) == pytest.approx(len(pages[1]), rel=0.01)
    assert verify(Store(tmp_path / "often")).sound


def test_r11_one_large_file_resumes_at_a_partition(recipe, store, tmp_path):
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(2000)]}), tmp_path / "one.parquet")
    path = recipe("name: texts\nstages:\n  raw: {op: ingest.parquet, path: one.parquet, shard_rows: 100}\n")
    with dying(tmp_path / "whole", None) as whole:
        build(path, tmp_path / "whole")
    with dying(store, 40) as first, pytest.raises(Killed):
        build(path, store)
    with dying(store, None) as rest:
        built = build(path, store)
    assert whole.count("write") >= 20 and first.count("write") >= 10
    assert first.count("write") + rest.count("write") <= whole.count("write") + 1
    assert built.records["raw"].table.rows == 2000


def test_r12_stages_that_add_a_light_column_copy_no_picture(recipe, store, tmp_path):
    folder = photos(tmp_path, 20, side_px=100)
    text = "name: pets\nstages:\n  raw: {op: ingest.image_folder, path: photos}\n  s0: {op: score.perceptual_hash, from: raw}\n"
    text += "".join(
        f"  s{n}: {{op: table.split, from: s{n - 1}, seed: {n}}}\n" if n == 1 else f"  s{n}: {{op: filter.decodable, from: s{n - 1}}}\n" for n in range(1, 5)
    )
    build(recipe(text), store)
    pictures = sum(path.stat().st_size for path in folder.rglob("*.png"))
    assert sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) < 1.3 * pictures


@pytest.mark.server
@pytest.mark.slow
def test_o02_eight_stages_at_once_are_no_noise(recipe, store, capfd):
    text = "name: digits\nseed: 1\nstages:\n  raw: {op: ingest.digits}\n  split: {op: table.split, from: raw}\n"
    text += "".join(f"  s{n}: {{op: prune.random, from: split.train, keep: {n}0%}}\n" for n in range(1, 9))
    assert len(build_recipe(recipe(text), store, workers=1).stages) == 10
    told = "".join(capfd.readouterr())
    assert "Traceback" not in told and "locked" not in told


def test_o03_a_secret_stands_nowhere_in_the_store(recipe, store, tmp_path, monkeypatch):
    secret = "hunter2-correct-horse"
    photos(tmp_path / secret, 6)
    monkeypatch.setenv("PHOTOS_TOKEN", secret)
    path = recipe("name: pets\nstages:\n  raw: {op: ingest.image_folder, path: '${env:PHOTOS_TOKEN}/photos'}\npublish:\n  splits: {train: raw}\n")
    build(path, store)
    assert [str(file) for file in store.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()] == []
    (tmp_path / secret / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(StillroomError) as told:
        make_plan(path, store)
    assert secret not in str(told.value)
    assert secret not in json.dumps([run for run in (Store(store).read_json(key) for key in Store(store).list("runs/"))])
