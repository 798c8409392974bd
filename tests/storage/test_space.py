"""Space: what won't fit doesn't start, a disk that fills is told in one line, and the build goes on when there is room."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows.build import build_recipe
from flows.plan import make_plan
from stillroom import registry
from stillroom.disk import is_full
from stillroom.errors import StageError, StoreError
from stillroom.images import encode_png
from stillroom.records import read_record
from stillroom.scratch import SCRATCH, memory_map, scratch_folder
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import table_bytes
from stillroom.stores import Store
from storage.commits import write_batches
from storage.gc import gc
from storage.space import SMALL_BYTES, free_bytes, full_disk, room_for
from storage.verify import verify
from tasks import engine
from tasks.needs import bytes_needed

RECIPE = """
name: pictures
stages:
  raw: {{op: ingest.image_folder, path: "{path}"}}
  split: {{op: table.split, from: raw, validation: 20%, test: 20%}}
  looks: {{op: score.embed, from: split.train, side_px: 8, channels: 3}}
  core: {{op: prune.k_medoids, from: looks, keep: 50%}}
publish:
  splits: {{train: core, validation: split.validation, test: split.test}}
"""
X = pa.schema([("sample_id", pa.string()), ("x", pa.binary())])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many MB; asked for again, it grows."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(megabytes: int) -> Path:
        options = f"size={megabytes}m" if not place.is_mount() else f"remount,size={megabytes}m"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no small disk for this test: {mounted.stderr.strip()}")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for 3 MB of noise, in two classes."""
    folder, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number in range(60):
        path = folder / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(numbers.integers(0, 255, (128, 128, 3), np.uint8)))
    (folder / "pictures.yaml").write_text(RECIPE.format(path=folder / "images"))
    return folder / "pictures.yaml"


def test_what_will_not_fit_does_not_start_and_goes_on_when_there_is_room(pictures, small_disk):
    store = Store(small_disk(3) / "store")
    with pytest.raises(
        StageError, match=r"stage 'raw': needs about 4\.\d MB on the disk, and .*store has \d\.\d MB free; make room, such as by `stillroom gc`"
    ):
        build_recipe(pictures, store.uri, workers=1)
    assert not store.list("stages/") and not store.list("records/")
    small_disk(6)
    with pytest.raises(StageError, match=r"stage 'publish': needs about \d\.\d MB on the disk, and .*store has \d\.\d MB free"):
        build_recipe(pictures, store.uri, workers=1)
    assert not store.list("snapshots/") and verify(store).sound
    small_disk(30)
    made = build_recipe(pictures, store.uri, workers=1)
    assert made.snapshot == "pictures@1" and {line["state"] for line in made.stages} == {"Reused"}
    assert open_snapshot("pictures@1", store, verify=True).table("test").frame().height
    assert verify(store).findings == []


def test_a_disk_that_fills_anyway_leaves_nothing_half(pictures, small_disk, monkeypatch):
    monkeypatch.setattr(engine, "bytes_needed", lambda spec, operator: 0)
    store = Store(small_disk(2) / "store")
    with pytest.raises(StageError, match=r"^stage 'raw': the disk is full: .*store has \d\.\d MB free; make room") as told:
        build_recipe(pictures, store.uri, workers=1)
    assert "\n" not in str(told.value)
    assert not store.list("records/") and verify(store).sound
    small_disk(30)
    assert build_recipe(pictures, store.uri, workers=1).snapshot == "pictures@1"
    gc(store)
    assert (verify(store).sound, verify(store).findings) == (True, []) and not store.list(f"{SCRATCH}/")


def test_gc_makes_room_where_not_even_its_lease_can_be_written(small_disk):
    place = small_disk(2)
    store = Store(place / "store")
    store.create_json("store.json", {"format": 1, "id": "x"})
    write_batches(store, "stages/a.b", [pa.record_batch([["a"], [os.urandom(1 << 20)]], schema=X)], X)
    fill(place / "of another")
    with pytest.raises(StoreError, match=r"the disk is full: 0\.0 MB are free; make room"), full_disk(store):
        store.put("leases/any", b"1")
    report = gc(store)
    assert report.bytes_removed > 1 << 20 and (free_bytes(store) or 0) > 1 << 20 and store.list("") == ["store.json"]


def fill(path: Path) -> None:
    with pytest.raises(OSError) as full, path.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    assert is_full(full.value)


def test_an_array_that_finds_no_room_is_an_error_and_not_the_end_of_the_process(small_disk):
    with pytest.raises(OSError, match="No space left on device") as full:
        memory_map(small_disk(1) / "array", (1 << 21,), np.uint8)
    assert is_full(full.value)
    assert memory_map(small_disk(4) / "array", (1 << 10, 4), np.float32).sum() == 0


def test_estimates_are_on_the_safe_side_and_not_far_off(pictures, tmp_path):
    store = Store(tmp_path / "store")
    build_recipe(pictures, store.uri, workers=1)
    plan = make_plan(pictures, store)
    tables = {stage.name: stage.record.table for stage in plan.stages if stage.record}
    for stage in plan.stages:
        spec = plan.spec(stage, tables)
        records = [record for fingerprint in (spec.fingerprint, spec.scores_fingerprint) if (record := read_record(store, fingerprint))]
        taken = sum(table_bytes(store, ref) for record in records for ref in (record.table, record.removed) if ref)
        needed = bytes_needed(spec, registry.load(spec.operator)) - SMALL_BYTES
        assert 0.9 * taken <= needed <= 3 * taken + 60 * 1024, stage.name


def test_scratch_lies_in_the_store_unless_it_is_a_bucket_or_read_only(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    system = scratch_folder(Store("s3://bucket/store"))
    assert scratch_folder(store) == system  # a look at a store that isn't there doesn't make it
    store.put("a", b"1")
    assert scratch_folder(store) == tmp_path / "store" / "work" / "scratch"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert scratch_folder(store) == system


def test_a_bucket_has_room(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: pytest.fail("asked for a disk"))
    with room_for(Store("s3://bucket/store"), "raw", 10**18):
        pass


def test_another_error_is_left_alone(tmp_path):
    with pytest.raises(OSError, match="something else"), room_for(Store(tmp_path), "raw", 0):
        raise OSError("something else")
