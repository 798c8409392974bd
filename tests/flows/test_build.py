"""Whole builds against a real server: what is reused, what is refused in one line, and a store that can be carried away."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stillroom
from flows.build import build_recipe
from flows.events import StageWaiting
from flows.publish import demote, promote
from stillroom.errors import GateError, InputError, StageError, StillroomError
from stillroom.images import decode, encode_png
from stillroom.snapshots import list_snapshots, promoted
from stillroom.stores import Store
from storage.leases import lease

pytestmark = [pytest.mark.server, pytest.mark.slow]

STAGES = """name: digits
seed: 3
stages:
  raw: {op: ingest.digits}
  few: {op: table.sample, from: raw, rows: 200}
  parts: {op: table.split, from: few, validation: 20%, test: 20%}
  clean: {op: filter.exact_duplicates, from: parts}
"""
PUBLISH = """publish:
  splits: {train: clean.train, validation: clean.validation, test: clean.test}
"""
RECIPE = STAGES + PUBLISH


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and a store on an awkward path in which it was built once."""
    folder = tmp_path_factory.mktemp("builds") / "Äpfel & Birnen 100%25 画像"
    folder.mkdir()
    recipe = folder / "ein Rezept.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = build_recipe(str(recipe), folder / "der Laden", workers=1)
    assert (result.snapshot, result.reused_all) == ("digits@1", False)
    assert [line["state"] for line in result.stages] == ["Built"] * 4
    return recipe, folder / "der Laden"


@contextmanager
def moved(store: Path, elsewhere: Path) -> Iterator[Path]:
    """The store somewhere else, and nothing where it was."""
    shutil.move(store, elsewhere)
    try:
        yield elsewhere
    finally:
        shutil.move(elsewhere, store)


def one_line(error: pytest.ExceptionInfo[StillroomError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Reuse


def test_a_second_build_reuses_everything_without_loading_what_runs(digits):
    recipe, store = digits
    code = f"""
import json, sys
from flows.build import build_recipe
result = build_recipe({str(recipe)!r}, {str(store)!r})
json.dump([result.reused_all, result.snapshot, [line["state"] for line in result.stages], sorted({{"prefect", "torch", "lance", "polars", "pandas", "multiprocessing"}} & set(sys.modules))], sys.stdout)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [True, "digits@1", ["Reused"] * 4, []]


def test_renamed_stages_are_reused(digits, recipe):
    _, store = digits
    renamed = recipe(RECIPE.replace("raw", "grown").replace("parts", "thirds").replace("clean", "washed"))
    result = build_recipe(str(renamed), store)
    assert (result.reused_all, result.snapshot) == (True, "digits@1")


def test_only_the_changed_stage_and_those_after_it_run(recipe, store):
    path = str(recipe(STAGES))
    build_recipe(path, store, workers=1)
    changed = build_recipe(path, store, ["parts.test=30%"], workers=1)
    assert {line["name"]: line["state"] for line in changed.stages} == {"raw": "Reused", "few": "Reused", "parts": "Built", "clean": "Built"}


# The digits are all sound, so the stage changes fingerprints and no row.
LONGER = RECIPE.replace(
    "  clean: {op: filter.exact_duplicates, from: parts}", "  sound: {op: filter.decodable, from: parts}\n  clean: {op: filter.exact_duplicates, from: sound}"
)


def test_equal_content_gets_no_new_number(digits, recipe):
    _, store = digits
    assert build_recipe(str(recipe(LONGER)), store, workers=1).snapshot == "digits@1"
    assert [line["number"] for line in list_snapshots(store) if not line["trial"]] == [1]


def test_content_that_was_published_before_is_not_written_again(digits, recipe):
    _, store = digits
    build_recipe(str(recipe(LONGER)), store, workers=1)
    versions = lance.dataset(f"{store}/digits.lance").version
    assert build_recipe(str(recipe(LONGER)), store, workers=1).reused_all
    assert lance.dataset(f"{store}/digits.lance").version == versions


def test_until_builds_what_a_stage_needs_and_publishes_nothing(recipe, store):
    result = build_recipe(str(recipe(RECIPE)), store, until="few", workers=1)
    assert ([line["name"] for line in result.stages], result.snapshot) == (["raw", "few"], None)
    assert list_snapshots(store) == []


def test_a_build_publishes_after_the_one_that_is_publishing(recipe, store):
    told, waited = threading.Event(), []

    def listen(event) -> None:
        if isinstance(event, StageWaiting) and event.name == "publish":
            waited.append(list_snapshots(store))
            told.set()

    building = threading.Thread(target=lambda: build_recipe(str(recipe(RECIPE)), store, workers=1, listener=listen))
    with lease(Store(store), "publish-digits", "publish"):
        building.start()
        assert told.wait(120)
    building.join(120)
    assert waited == [[]]  # nothing was published before it was its turn
    assert [line["number"] for line in list_snapshots(store)] == [1]


# Refusals


def test_an_empty_table_fails_the_build(installing, recipe, store):
    nothing = (
        "import pyarrow as pa\nfrom stillroom.operators import Rows, row\n\n"
        "@row(version=1, adds={})\ndef nothing(batch):\n    return Rows(batch, dropped=pa.array(['not good enough'] * batch.num_rows))\n"
    )
    with installing("picky", {"filter/nothing": nothing}):
        path = str(recipe(RECIPE.replace("filter.exact_duplicates", "filter.nothing")))
        for _ in range(2):  # also where the empty table is there already
            with pytest.raises(StageError) as error:
                build_recipe(path, store, workers=1)
            assert one_line(error) == "stage 'clean': no row is left; loosen it, or allow it with publish.require.checks: [{rows: {min: 0}}]"
    assert list_snapshots(store) == []


def test_a_failing_gate_publishes_nothing_and_says_what_failed(recipe, store):
    path = str(recipe(RECIPE + "  require: {checks: [{column: width, equals: 9}, {column: height, equals: 8}]}\n"))
    with pytest.raises(GateError) as error:
        build_recipe(path, store, workers=1)
    told = one_line(error)
    assert told.startswith("'digits': 1 of ")
    assert "nothing is published: recipe: width equals 9 (expect_column_values_to_be_in_set) failed on 200 of 200 rows, such as " in told
    samples = set(stillroom.table("digits.clean", store).frame()["sample_id"])
    assert set(told.split("such as ")[1].split(", ")) < samples
    assert list_snapshots(store) == []


def test_a_picture_in_train_and_test_fails_the_leakage_gate(tmp_path, recipe, store):
    images = [encode_png(np.full((4, 4, 1), shade, np.uint8)) for shade in (1, 2, 3, 4, 1)]
    folds = ["train", "train", "validation", "test", "test"]
    pq.write_table(pa.table({"image": images, "key": list("abcde"), "fold": folds}), tmp_path / "pictures.parquet")
    text = """name: leaky
stages:
  raw: {op: ingest.parquet, path: pictures.parquet, id: "column:key"}
  parts: {op: table.split, from: raw, given: {column: fold}}
publish:
  splits: {train: parts.train, validation: parts.validation, test: parts.test}
"""
    with pytest.raises(GateError) as error:
        build_recipe(str(recipe(text)), store, workers=1)
    assert "leakage: at most 0 training rows in validation or test (no_exact_leaks) failed on 1 of 2 rows, such as a (also in test)" in one_line(error)
    assert list_snapshots(store) == []
    assert build_recipe(str(recipe(text + "  require: {max_leaks: 1}\n")), store, workers=1).snapshot == "leaky@1"


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A folder of ten images, of which one is cut."""
    for number in range(10):
        image = encode_png(np.full((4, 4, 1), number, np.uint8))
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image if number != 3 else image[:40])
    return tmp_path


def test_too_many_rejects_fail_in_one_line_with_an_example(cut, recipe, store):
    text = "name: folder\nstages:\n  raw: {op: ingest.image_folder, path: images}\n"
    with pytest.raises(StageError) as error:
        build_recipe(str(recipe(text)), store, workers=1)
    told = one_line(error)
    assert told.startswith("stage 'raw': 1 of 10 rows were rejected, more than max_rejects 1.0% allows")
    assert "b/3.png" in told
    assert told.endswith("; mend the source, or raise publish.require.max_rejects")
    allowed = text + "  parts: {op: table.split, from: raw}\npublish: {splits: {train: parts.train}, require: {max_rejects: 10%}}\n"
    assert build_recipe(str(recipe(allowed)), store, workers=1).snapshot == "folder@1"


# What a store is good for


def test_a_store_works_elsewhere(digits, tmp_path):
    recipe, store = digits
    with moved(store, tmp_path / "copy") as elsewhere:
        snapshot = stillroom.open("digits@1", elsewhere)
        batch = next(snapshot.arrow("train", ["image", "label"], batch_size=8))
        assert [decode(image).shape for image in batch["image"].to_pylist()] == [(8, 8, 1)] * 8
        carried = stillroom.table("digits.clean", elsewhere).take([0, 1], ["image"])["image"].to_pylist()
        assert [decode(image).shape for image in carried] == [(8, 8, 1)] * 2
        assert build_recipe(str(recipe), elsewhere).reused_all


def test_lancedb_opens_a_published_version_as_a_complete_table(digits):
    import lancedb

    _, store = digits
    table = lancedb.connect(str(store)).open_table("digits")
    table.checkout("v1")
    found = table.to_arrow()
    assert found.num_rows == 200
    assert not [name for name in found.column_names if name.endswith("_at")]
    assert {decode(image).shape for image in found["image"].to_pylist()} == {(8, 8, 1)}
    assert sorted(set(found["split"].to_pylist())) == ["test", "train", "validation"]
    snapshot = stillroom.open("digits@1", store)
    assert found["split"].to_pylist().count("train") == snapshot.splits["train"]


def test_tables_of_stages_are_read_by_name(digits):
    _, store = digits
    assert stillroom.table("digits.raw", store).rows == 1797
    with pytest.raises(InputError, match="the recipe has no such stage; known: raw, few, parts, "):
        stillroom.table("digits.row", store)
    with pytest.raises(InputError, match="no recipe 'digit' was ever built"):
        stillroom.table("digit.raw", store)


# Promotion


def test_the_promoted_snapshot_is_the_one_that_opens(recipe: Callable[[str], Path], store):
    path = str(recipe(RECIPE))
    build_recipe(path, store, workers=1)
    with pytest.raises(InputError, match="no snapshot of that name is promoted; open 'digits@1', or run `stillroom promote digits@1"):
        stillroom.open("digits", store)
    promote(str(store), "digits@1", "the first")
    assert stillroom.open("digits", store).name == "digits@1"
    second = build_recipe(path, store, ["few.rows=150"], workers=1)
    assert (second.snapshot, second.promoted) == ("digits@2", False)
    assert stillroom.open("digits", store).name == "digits@1"
    promote(str(store), "digits@2", "smaller")
    assert [(line["number"], line["promoted"]) for line in list_snapshots(store)] == [(1, False), (2, True)]
    demote(str(store), "digits", "too small")
    assert stillroom.open("digits", store).name == "digits@1"


def test_every_promotion_can_be_taken_back(tmp_path):
    from storage.manifests import promote as point_at

    store = Store(tmp_path)
    table = {"name": "digits", "version": 2, "rows": 0, "fingerprint": "ab", "digest": "cd", "columns": {}}
    manifest = {"name": "digits", "created": "2026-01-01T00:00:00+00:00", "digest": "cd", "rows": 0, "trial": False, "splits": {}}
    manifest |= {"table": table, "files": {}, "stages": []}
    for number in (1, 2):
        store.put_json(f"snapshots/digits/{number}.json", {**manifest, "number": number})
        point_at(store, "digits", number, "better")
    demote(str(tmp_path), "digits", "not so")
    assert promoted(store, "digits")["number"] == 1
    demote(str(tmp_path), "digits", "not that either")
    assert promoted(store, "digits")["number"] is None


def test_a_trial_is_never_promoted(recipe, store):
    path = str(recipe(RECIPE))
    trial = build_recipe(path, store, rows=100, workers=1)
    assert (trial.snapshot, trial.promoted) == ("digits@1", False)
    assert any("trial" in note for note in trial.notes)
    assert sum(stillroom.open("digits@1", store).splits.values()) == 100
    with pytest.raises(InputError, match="is a trial on a part of the data and is never promoted"):
        promote(str(store), "digits@1", "let's see")
    whole = build_recipe(path, store, workers=1)
    assert (whole.snapshot, whole.reused_all) == ("digits@2", False)
