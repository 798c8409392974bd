"""rebuild: from a manifest and the sources alone the same digests come again, and what differs is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.build import build_recipe
from flows.cli.app import app
from flows.forget import rebuild_withdrawn
from flows.rebuild import differences, rebuild
from stillroom.errors import InputError
from stillroom.images import encode_png
from stillroom.snapshots import manifest_of
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.forget import forget

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """
name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  core: {op: prune.random, from: split.train, keep: 50%}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, pets.yaml, and a store with pets@1, built with --set."""
    folder = tmp_path_factory.mktemp("built")
    numbers = np.random.default_rng(1)
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            (folder / "photos" / label / f"{label}-{number}.png").write_bytes(encode_png(numbers.integers(0, 255, (8, 8, 3), np.uint8)))
    (folder / "pets.yaml").write_text(RECIPE)
    assert build_recipe(folder / "pets.yaml", folder / "store", ["core.keep=80%"], workers=1).snapshot == "pets@1"
    return folder


def test_every_digest_comes_again_from_the_manifest_without_the_recipe_s_file(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (built / "pets.yaml").rename(built / "put-away.yaml")
    try:
        found = rebuild("pets@1", str(built / "store"), str(tmp_path / "again"), workers=1)
    finally:
        (built / "put-away.yaml").rename(built / "pets.yaml")
    assert [(one.name, one.same) for one in found.compared] == [("raw", True), ("split", True), ("core", True), ("pets@1", True)]
    assert (found.same, found.made, found.differs) == (True, "pets@1", [])
    assert found.compared[-1].before == open_snapshot("pets@1", tmp_path / "again", verify=True).manifest["digest"]


def test_a_source_that_changed_shows_in_each_digest_that_hangs_on_it(built, tmp_path):
    shutil.copytree(built, tmp_path / "home")
    source = open_snapshot("pets@1", built / "store").polars("test", ["source"])["source"][0]
    (tmp_path / "home" / "photos" / source).write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    words = ["rebuild", "pets@1", "--store-from", tmp_path / "home" / "store", "--into", tmp_path / "again", "--set", f"raw.path={tmp_path}/home/photos"]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 1
    said = {line.split()[0]: line.split()[-1] for line in ended.stdout.splitlines() if line.startswith((" raw", " split", " core", " pets@1 "))}
    assert said == {"raw": "NO", "split": "NO", "core": "NO", "pets@1": "NO"}  # it has another id, and so another split
    assert ended.stdout.endswith(f"pets@1: 4 of 4 digests differ; made again as pets@1 in {tmp_path / 'again'}\n")


def test_what_the_store_forgot_is_left_out_of_both(built, tmp_path):
    shutil.copytree(built, tmp_path / "home")
    store = str(tmp_path / "home" / "store")
    assert forget(Store(store), ["cat/cat-3.png"]).snapshots == ["pets@1"]
    assert rebuild_withdrawn(store, ["pets@1"]).made == {"pets@1": "pets@2"}
    assert open_snapshot("pets@2", store).manifest["stages"][0]["rows"] == 19
    found = rebuild("pets@2", store, str(tmp_path / "again"), workers=1)
    assert found.same and found.notes == [f"what {store} has forgotten (1 times) is left out here too"]


def test_a_store_with_something_in_it_is_refused(built, tmp_path):
    for full in (built / "store", built):
        with pytest.raises(InputError, match="isn't empty, and what is there would be taken instead of made; name a folder that isn't there yet"):
            rebuild("pets@1", str(built / "store"), str(full))


def test_packages_and_machine_that_are_others_now_are_named(built):
    manifest = json.loads(json.dumps(manifest_of("pets@1", str(built / "store"))))
    assert differences(manifest) == []
    manifest["environment"]["packages"]["torch"] = "1.0"
    manifest["stages"][0]["environment"] = {**manifest["environment"], "machine": "abacus"}
    assert [(line["what"], line["before"]) for line in differences(manifest)] == [("torch", "1.0"), ("machine", "abacus")]
