"""forget after real builds: of a row nothing stays, the next build leaves it out, and the Prefect UI loses its pictures."""

import json
import shutil
from pathlib import Path
from urllib.request import Request, urlopen

import lance
import numpy as np
import pyarrow as pa
import pytest

from flows.build import build_recipe
from flows.forget import forget_samples
from flows.plan import make_plan
from flows.server import server_status
from stillroom.errors import StoreError
from stillroom.images import encode_png
from stillroom.records import read_record
from stillroom.snapshots import list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.commits import write_batches
from storage.forget import forget
from storage.tombstones import read_tombstones
from storage.verify import verify
from tasks.ingest._samples import content_id

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """
name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  clean: {op: filter.near_duplicates, from: split, max_distance: 2}
  teacher: {op: train.teacher, from: {samples: clean.train, check_on: clean.validation}, net: mlp, steps: 2}
  core: {op: prune.random, from: clean.train, keep: 50%}
publish:
  splits: {train: core, validation: clean.validation, test: clean.test}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, pets.yaml and a store with pets@1; copy.png is a copy of whiskers.png."""
    folder = tmp_path_factory.mktemp("built")
    for label, mean in (("cat", 90), ("dog", 150)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(12):
            (folder / "photos" / label / f"{label}-{number:02}.png").write_bytes(encode_png(picture(mean, number)))
    shutil.move(folder / "photos" / "cat" / "cat-00.png", folder / "photos" / "cat" / "whiskers.png")
    shutil.copy(folder / "photos" / "cat" / "whiskers.png", folder / "photos" / "cat" / "zz-copy.png")
    (folder / "pets.yaml").write_text(RECIPE)
    build_recipe(folder / "pets.yaml", folder / "store", workers=1)
    return folder


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of all that to change."""
    return Path(shutil.copytree(built, tmp_path / "home"))


def picture(mean: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng([mean, seed]).normal(mean, 30, (12, 12, 1)), 0, 250).astype(np.uint8)


def whiskers(home: Path) -> tuple[str, bytes]:
    """Id and bytes of a picture."""
    data = (home / "photos" / "cat" / "whiskers.png").read_bytes()
    return content_id(data), data


def traces_of(store: Path, *needles: bytes) -> list[str]:
    """Files with one of these bytes, and tables in which any value of any row of any version has them."""
    found = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]
    for uri in store.rglob("*.lance"):
        if (uri / "_versions").is_dir():
            for version in lance.dataset(uri).versions():
                for row in lance.dataset(uri, version=version["version"]).to_table().to_pylist():
                    values = repr(row).encode() + b"".join(value for value in row.values() if isinstance(value, bytes))
                    if any(needle in values for needle in needles):
                        found.append(f"{uri.name}@{version['version']}")
    return found


def test_nothing_of_a_row_stays_in_the_store(home):
    store, (sample, data) = home / "store", whiskers(home)
    needles = (sample.encode(), b"whiskers.png", b"zz-copy.png", data)
    leave_more_traces(store, sample, data)
    before = traces_of(store, *needles)
    assert {"pets.lance@2", "pets.raw.lance@2", "pets.raw.removed.lance@2", "pets.split.lance@2"} <= set(before)
    assert {"work/feed/unit.arrow", "runs/one.json", "snapshots/pets/1.html"} <= set(before)
    found = forget(Store(store), ["cat/whiskers.png"], reason="cat/whiskers.png asked")
    assert traces_of(store, *needles) == []
    assert found.receipts[0]["rows"] == 1 and found.receipts[0]["snapshots"] == ["pets@1"]
    assert found.receipts[0]["versions"] == 8  # raw and core with their removed rows, split, clean, its hashes, pets
    report = verify(Store(store))
    assert (report.sound, report.findings) == (True, [])


def leave_more_traces(store: Path, sample: str, data: bytes) -> None:
    """What builds that died and other people's tools leave: unfinished work, files of no version, a deletion vector, an index, a message."""
    table = pa.table({"sample_id": [sample], "image": [data]})
    write_batches(Store(store), "stages/pets.raw", table.to_batches(), table.schema)
    write_batches(Store(store), "stages/pets.gone", table.to_batches(), table.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    Store(store).put("work/feed/unit.arrow", sink.getvalue().to_pybytes())
    Store(store).put_json("runs/one.json", {"id": "one", "recipe": "pets", "started": "2026-01-01T00:00:00+00:00", "state": "Failed", "stage": "raw",
                                            "message": f"can't read /data/photos/cat/whiskers.png ({sample})", "command": "stillroom build", "fingerprints": {}})  # fmt: skip
    published = lance.dataset(store / "pets.lance")
    published.create_scalar_index("sample_id", "BTREE")
    published.delete(f"sample_id = '{sample}'")
    page = store / "snapshots" / "pets" / "1.html"
    page.write_bytes(page.read_bytes() + b"<!-- thumbnail -->" + data)


def test_its_snapshots_keep_their_manifests_and_say_why_they_have_no_table(home):
    store = Store(home / "store")
    manifest = store.read_json("snapshots/pets/1.json")
    forget(store, [whiskers(home)[0]], reason="request 17")
    assert store.read_json("snapshots/pets/1.json") == manifest
    assert [line["withdrawn"] for line in list_snapshots(store)] == [True]
    with pytest.raises(StoreError, match=r"pets@1: was withdrawn at .*forgotten: request 17; `stillroom build pets.yaml`"):
        open_snapshot("pets@1", store)
    assert not (home / "store" / "pets.lance").exists() and store.list("published/") == []


def test_the_next_build_leaves_it_out_and_trains_anew(home):
    store, (sample, data) = Store(home / "store"), whiskers(home)
    before = {stage.name: stage.prints.table for stage in make_plan(home / "pets.yaml", store).stages}
    seen = forget(store, [sample]).seen
    assert [(one.kind, one.what, one.fingerprint) for one in seen] == [("model", "pets@1: teacher", before["teacher"])]
    after = {stage.name: stage for stage in make_plan(home / "pets.yaml", store).stages}
    assert all(stage.runs and stage.prints.table != before[name] for name, stage in after.items())
    assert build_recipe(home / "pets.yaml", store.uri, workers=1).snapshot == "pets@2"
    raw = read_record(store, after["raw"].prints.table)
    assert raw is not None and raw.counts == {"planned": 25, "out": 23, "forgotten": 2, "dropped": 0, "rejected": 0, "merged": 0}
    assert traces_of(home / "store", sample.encode(), b"whiskers.png", b"zz-copy.png", data) == []
    assert verify(store).sound


def test_it_is_known_again_by_id_by_picture_and_by_where_its_stage_found_it(home):
    store, (sample, data) = Store(home / "store"), whiskers(home)
    forget(store, [sample])
    stones = read_tombstones(store)

    def forgotten(table: str, **row: object) -> bool:
        batch = pa.record_batch({name: pa.array([value], pa.binary() if name == "image" else pa.string()) for name, value in row.items()})
        return bool(stones.forgotten(batch, table)[0])

    assert forgotten("stages/other.raw", sample_id=sample, source="a.png", image=b"another")
    assert forgotten("stages/other.raw", sample_id="new", source="a.png", image=data)
    assert forgotten("stages/pets.raw", sample_id="new", source="cat/whiskers.png", image=b"another")
    assert not forgotten("stages/other.raw", sample_id="new", source="cat/whiskers.png", image=b"another")
    assert not forgotten("stages/pets.raw", sample_id="new", source="cat/cat-01.png", image=b"another")


def test_tombstones_name_nobody_and_two_stores_share_no_hash(home, tmp_path):
    twin, sample = Path(shutil.copytree(home / "store", tmp_path / "twin")), whiskers(home)[0]
    hashes = []
    for store in (home / "store", twin):
        forget(Store(store), [sample])
        hashes.append(set(Store(store).read_json("forgotten/1.json")["ids"]))
        receipt = Store(store).read_json("forgotten/receipts/1.json")
        assert set(receipt) == {"at", "reason", "rows", "versions", "snapshots", "files", "bytes", "tombstone"}
    assert hashes[0].isdisjoint(hashes[1])


def test_a_source_that_never_had_it_keeps_its_table(home):
    store = Store(home / "store")
    (home / "other.yaml").write_text("name: other\nstages:\n  raw: {op: ingest.digits}\n")
    before = make_plan(home / "other.yaml", store).stages[0].prints
    forget(store, [whiskers(home)[0]])
    assert make_plan(home / "other.yaml", store).stages[0].prints == before


def test_a_damaged_record_is_a_line_and_nothing_is_done(home):
    store = home / "store"
    record = next((store / "records").glob("*.json"))
    record.write_bytes(record.read_bytes().replace(b"table", b"tabel", 1))
    with pytest.raises(StoreError, match=rf"'records/{record.name}': is damaged.*can't be looked through; `stillroom verify`"):
        forget(Store(store), [whiskers(home)[0]])


def test_pictures_in_the_prefect_ui_go_too(built, home):
    server = server_status()
    assert server is not None

    def sheets() -> list[str]:
        asked = Request(f"{server.url}/artifacts/filter", b'{"artifacts": {"key": {"like_": "samples-%"}}}', {"content-type": "application/json"})
        flow_run = Store(built / "store").read_json(Store(built / "store").list("runs/")[0])["flow_run"]["id"]
        with urlopen(asked) as answer:
            return [sheet["key"] for sheet in json.load(answer) if sheet["flow_run_id"] == flow_run]

    assert "samples-raw" in sheets()
    _, remarks = forget_samples(str(home / "store"), ["cat/whiskers.png"])
    assert (sheets(), remarks) == ([], [])
