"""Whole builds in a bucket: as in a folder, digest by digest, whatever happens on the way, and with no secret left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from typer.testing import CliRunner

import stillroom
from flows.build import build_recipe
from flows.cli.app import app
from flows.plan import make_plan
from flows.publish import promote
from stillroom.images import encode_png
from stillroom.snapshots import list_snapshots
from stillroom.stores import Store

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """name: pets
seed: 3
stages:
  raw: {op: ingest.image_folder, path: pictures, shard_rows: 40}
  parts: {op: table.split, from: raw, validation: 20%, test: 20%}
  clean: {op: filter.decodable, from: parts}
publish:
  splits: {train: clean.train, validation: clean.validation, test: clean.test}
"""


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and a folder in which it was built."""
    folder = tmp_path_factory.mktemp("pets")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1), np.uint8)
    for number, picture in enumerate(pixels):
        file = folder / "pictures" / ("cat", "dog", "emu")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(picture))
    (folder / "pets.yaml").write_text(RECIPE, encoding="utf-8")
    build_recipe(folder / "pets.yaml", folder / "store", workers=1)
    return folder / "pets.yaml", folder / "store"


@pytest.fixture(scope="module")
def bucket(weed_server: Any, pets: tuple[Path, Path]) -> Iterator[str]:
    """A store in a bucket in which the same was built."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in weed_server.environment.items():
            environment.setenv(name, value)
        uri = "s3://stillroom/builds"
        result = build_recipe(pets[0], uri, workers=1)
        assert (result.snapshot, result.report) == ("pets@1", f"{uri}/snapshots/pets/1.html")
        yield uri


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `stillroom WORDS…` as a process of its own, in an empty folder."""
    started = []

    def start(*words: object) -> subprocess.Popen[str]:
        code = "from flows.cli.app import main; main()"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *(str(word) for word in words)],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def digests(store: str | Path) -> dict[str, str]:
    """The digest of the snapshot, and of every stage's table."""
    manifest = stillroom.open("pets@1", store).manifest
    return {"pets@1": manifest["digest"]} | {stage["name"]: stage["table"]["digest"] for stage in manifest["stages"]}


def stage_digests(recipe: Path, store: str | Path) -> dict[str, str]:
    """The digest of every stage's table, by the records."""
    return {stage.name: stage.record.table.digest if stage.record else "" for stage in make_plan(recipe, store).stages}


def copied(source: Store, target: Store) -> Store:
    """Every object of one store in another, as any tool would copy them."""
    for key in source.list(""):
        target.put(key, source.read(key) or b"")
    return target


def test_a_bucket_holds_what_a_folder_holds(pets, bucket):
    assert digests(bucket) == digests(pets[1])


def test_a_second_build_reuses_everything(pets, bucket):
    assert not make_plan(pets[0], bucket).running
    result = build_recipe(pets[0], bucket, workers=1)
    assert result.reused_all and {line["state"] for line in result.stages} == {"Reused"}


def test_trainers_and_lancedb_read_it(pets, bucket):
    folder, snapshot = stillroom.open("pets@1", pets[1]), stillroom.open("pets@1", bucket)
    assert snapshot.splits == folder.splits
    for here, there in zip(snapshot.arrow("train"), folder.arrow("train"), strict=True):
        assert here.equals(there)
    assert snapshot.polars("test").equals(folder.polars("test"))
    (first, *_) = snapshot.loader("train", batch_size=16)
    assert first["image"].shape == (16, 1, 8, 8)
    table = lancedb.connect(bucket).open_table("pets")
    table.checkout("v1")
    assert table.count_rows() == snapshot.manifest["rows"]


def test_the_commands_work_on_it(pets, bucket):
    promote(bucket, "pets@1", "for this test")
    for words, told in (
        (["snapshots"], "pets@1"),
        (["show", "pets"], f"report  {bucket}/snapshots/pets/1.html"),
        (["plan", str(pets[0])], "built before (120 rows)"),
        (["runs"], "Completed"),
        (["verify"], "sound"),
    ):
        result = CliRunner().invoke(app, [*words, "--store", bucket], env={"COLUMNS": "200"})
        assert (result.exit_code, told in result.output) == (0, True), result.output


def test_a_plain_copy_is_the_same_store(pets, bucket, s3, tmp_path):
    there = copied(Store(pets[1]), Store(s3))
    back = copied(there, Store(tmp_path / "back"))
    for store in (there, back):
        assert digests(store.uri) == digests(pets[1])
        assert not make_plan(pets[0], store).running
        assert stillroom.open("pets@1", store).polars("train").equals(stillroom.open("pets@1", pets[1]).polars("train"))
    # And what is damaged there is found there.
    (pictures,) = there.list("stages/pets.raw.lance/data/")[:1]
    raw = bytearray(there.read(pictures) or b"")
    raw[len(raw) // 2] ^= 1
    there.put(pictures, bytes(raw))
    damaged = CliRunner().invoke(app, ["verify", "--store", s3], env={"COLUMNS": "200"})
    assert damaged.exit_code == 1 and pictures in damaged.output


def test_a_build_through_a_bad_network_comes_out_the_same(pets, s3, proxy, plan):
    proxy.follow(plan(seed=1, rate=0.1))
    result = build_recipe(pets[0], s3, workers=2)
    assert len(proxy.suffered) >= 6 and proxy.suffered.total() > 10
    proxy.follow(plan())
    assert result.snapshot == "pets@1" and digests(s3) == digests(pets[1])
    assert [line["name"] for line in list_snapshots(s3)] == ["pets"]
    assert not Store(s3).list("work/")


def test_a_killed_build_goes_on(pets, s3, command):
    process = command("build", pets[0], "--store", s3, "--workers", 1, "--until", "clean")
    until = time.monotonic() + 120
    while not any(key.endswith(".json") for key in Store(s3).list("records/")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = build_recipe(pets[0], s3, workers=1, until="clean")
    assert result.stages[0]["state"] == "Reused"
    assert stage_digests(pets[0], s3) == stage_digests(pets[0], pets[1])


def test_a_server_that_fails_in_the_middle_is_one_line_with_the_way_on_and_no_secret(pets, s3, proxy, plan, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "1")
    proxy.follow(plan().aim("PUT", r"parts.lance/_versions/", "503 before", times=10_000))
    failed = CliRunner().invoke(app, ["build", str(pets[0]), "--store", s3, "--until", "clean", "--workers", "1"])
    (told,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.exit_code == 1 and "Traceback" not in failed.output
    assert told.startswith(f"error: stage 'parts': {s3}: {proxy.endpoint} answers with an error (503 Service Unavailable); try again later")
    assert told.endswith(f"go on with: stillroom build {pets[0]} --store {s3} --until clean --workers 1")

    proxy.follow(plan())
    result = build_recipe(pets[0], s3, workers=1, until="clean")
    assert [line["state"] for line in result.stages] == ["Reused", "Built", "Built"]

    written = [failed.output.encode(), caplog.text.encode(), *(Store(s3).read(key) or b"" for key in Store(s3).list(""))]
    written += [file.read_bytes() for file in Path(os.environ["STILLROOM_HOME"]).rglob("*") if file.is_file()]
    assert any(b"pets" in text for text in written[2:])
    for secret in (os.environ["AWS_ACCESS_KEY_ID"].encode(), os.environ["AWS_SECRET_ACCESS_KEY"].encode()):
        assert not [text for text in written if secret in text]
