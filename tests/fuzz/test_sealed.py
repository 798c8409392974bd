"""What a store says of itself, twisted and sealed again: every reader refuses in a line or goes on, and nothing beside the store changes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.plan import make_plan
from stillroom.errors import StillroomError
from stillroom.sealed import seal, unseal
from stillroom.snapshots import list_snapshots, manifest_of
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage import leases, manifests
from storage.alive import this_process
from storage.export import export_snapshot
from storage.forget import forget
from storage.gc import Policy, gc
from storage.imports import import_snapshot
from storage.runs import list_runs
from storage.verify import verify
from tests.fuzz.builds import build
from tests.fuzz.mutations import damaged, fuzz, nothing_outside, refused_or_fine, twisted
from tests.photos import paint

RECIPE = """name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  core: {op: prune.random, from: split.train, keep: 50%}
publish:
  splits: {train: core, test: split.test}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a recipe, an export, and a store that has one of each object that stillroom writes."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(14):
        paint(folder, number, side_px=4)
    (folder / "pets.yaml").write_text(RECIPE)
    store = Store(folder / "store")
    build(folder / "pets.yaml", folder / "store")
    forget(store, ["a/0.png"])
    for keep in ("50%", "70%", "90%"):
        build(folder / "pets.yaml", folder / "store", [f"core.keep={keep}"])
    for number in (2, 3):
        manifests.promote(store, "pets", number, "better")
    export_snapshot(open_snapshot("pets@3", store), folder / "out", "parquet")
    gc(store, Policy(keep_last=2))
    store.put_json("leases/gc.3.json", {"holder": {**this_process(), "pid": 2**22 + 1}, "beat": "beats/77", "what": "gc", "token": "t"})
    store.put_json(
        f"leases/{'e' * 64}.1.json", {"holder": {"host": "elsewhere", "boot": "x", "pid": 7, "started": 8}, "beat": "beats/78", "what": "raw", "token": "u"}
    )
    store.put_json(f"work/{'e' * 64}/0-1.json", {"files": {}})
    return folder


FOLDERS = ["store.json", "records/", "snapshots/", "published/", "promoted/", "withdrawn/", "forgotten/", "runs/", "exports/", "latest/", "leases/", "work/"]


def objects(store: Path, folder: str) -> list[Path]:
    """Sealed objects of a kind."""
    found = [store / folder] if folder == "store.json" else sorted((store / folder).rglob("*"))
    return [path for path in found if path.is_file() and path.suffix in (".json", ".leaves", ".units")]


def readers(folder: Path) -> dict[str, Callable[[], Any]]:
    store, recipe = Store(folder / "store"), folder / "pets.yaml"
    return {
        "open": lambda: open_snapshot("pets", store).table("train").frame(),
        "open all bytes": lambda: open_snapshot("pets@4", store, verify=True),
        "manifest": lambda: manifest_of("pets@2", store),
        "snapshots": lambda: list_snapshots(store),
        "runs": lambda: list_runs(store),
        "plan": lambda: make_plan(recipe, store, ["core.keep=90%"]),
        "verify": lambda: verify(store),
        "gc would": lambda: gc(store, Policy(keep_last=1), dry_run=True),
        "forget would": lambda: forget(store, ["b/1.png"], dry_run=True),
        "promote": lambda: manifests.promote(store, "pets", 4, "better still"),
        "build": lambda: build(recipe, folder / "store", ["core.keep=80%"]),
        "gc": lambda: gc(store, Policy(keep_last=1)),
    }


def read_all(folder: Path) -> None:
    answers: dict[str, Any] = {}
    with nothing_outside(folder / "store"):
        for name, reader in readers(folder).items():
            answers[name] = refused_or_fine(reader)
            assert "\n" not in str(answers[name]) or not isinstance(answers[name], StillroomError)
    for name in ("manifest", "snapshots", "runs", "plan", "verify"):
        assert answers[name] is not None


@pytest.fixture
def place(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Makes another copy of `made`, in place of the last one."""
    # Whoever a twisted lease names is waited for, but not for a minute.
    monkeypatch.setitem(leases.wait_until_free.__kwdefaults__, "patience_s", 0.3)
    monkeypatch.setitem(leases.lease.__wrapped__.__kwdefaults__, "patience_s", 0.3)

    def copy() -> Path:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        return Path(shutil.copytree(made, tmp_path / "place"))

    return copy


@pytest.mark.parametrize("kind", FOLDERS)
@fuzz(2)
@given(st.data())
def test_sealed_objects_of_another_shape(place, kind, data):
    folder = place()
    file = data.draw(st.sampled_from(objects(folder / "store", kind)))
    value = unseal(file.read_bytes(), "x")
    value = data.draw(twisted(value).filter(lambda twisted: isinstance(twisted, dict) and twisted and "checksum" not in twisted))
    try:
        file.write_bytes(seal(value))
    except ValueError:
        return  # no JSON
    read_all(folder)


@fuzz(3)
@given(st.data())
def test_sealed_objects_with_other_bytes_or_names(place, data):
    folder = place()
    file = data.draw(st.sampled_from(objects(folder / "store", data.draw(st.sampled_from(FOLDERS)))))
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    else:
        name = data.draw(st.sampled_from(["x.json", "-1.json", "01.json", "²", "1.json.json", "1", f"{'9' * 200}.json", " .json", "salt.json", "a.lance"]))
        shutil.copy(file, file.with_name(name))
    read_all(folder)


@fuzz(15)
@given(st.data())
def test_exports_that_were_twisted(place, data):
    folder = place()
    file = data.draw(st.sampled_from(sorted(path for path in (folder / "out").rglob("*") if path.is_file())))
    if file.suffix == ".json" and data.draw(st.booleans()):
        try:
            file.write_bytes(seal(data.draw(twisted(unseal(file.read_bytes(), "x")).filter(lambda value: isinstance(value, dict) and "checksum" not in value))))
        except ValueError:
            return
    else:
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    (folder / "other").mkdir()
    with nothing_outside(folder / "other"):
        refused_or_fine(lambda: import_snapshot(folder / "out", Store(folder / "other")))
