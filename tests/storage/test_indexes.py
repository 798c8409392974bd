"""Vector indexes of snapshots: found again by a search, in no digest, verified, kept and removed with their snapshot."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.build import build_recipe
from flows.cli.app import app
from stillroom.errors import InputError
from stillroom.fields import vector_field
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from storage import indexes
from storage.export import export_snapshot
from storage.forget import forget
from storage.gc import Policy, gc
from storage.imports import import_snapshot
from storage.publish import WrittenSnapshot, write_version
from storage.verify import verify

RECIPE = """
name: mini
seed: 7
stages:
  raw: {op: ingest.digits}
  looks: {op: score.embed, from: raw, side_px: 8, channels: 1}
  split: {op: table.split, from: looks, test: 20%}
publish:
  splits: {train: split.train, validation: split.validation, test: split.test}
  index: {embedding: cosine}
"""
SCHEMA = with_hashes(pa.schema([("sample_id", pa.string()), vector_field("embedding", 32)]))
# Kills itself when the rows are committed and their index isn't.
DYING = """
import os, signal, sys
import numpy as np, pyarrow as pa
from stillroom.stores import Store
from storage import indexes
from storage.publish import write_version
indexes.commit_on = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
values = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(2000 * 32, np.float32)), 32)
batch = pa.record_batch({"sample_id": [str(row) for row in range(2000)], "embedding": values})
write_version(Store(sys.argv[1]), "pets", batch.schema, [batch], "ab" * 32, index={"embedding": "cosine"})
"""


def clusters(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((40, 32))[rng.integers(0, 40, rows)] + 0.6 * rng.standard_normal((rows, 32))).astype(np.float32)


VECTORS = clusters(4000, 0)


def written(store: Store, vectors_ND: np.ndarray, **index: str) -> WrittenSnapshot:
    """Vectors as a version of the table `pets`."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), 32)
    ids = pa.array([f"{row:05}" for row in range(len(values))])
    batch = pa.record_batch([ids, values, hashes(values)], schema=SCHEMA)
    return write_version(store, "pets", SCHEMA, [batch], "ab" * 32, index=index or {"embedding": "cosine"})


def nearest(store: Store, table: str, version: int | str, vector: np.ndarray, **more: Any) -> list[str]:
    dataset = lance.dataset(store.table_uri(table), version=version)
    scanner = dataset.scanner(columns=["sample_id"], nearest={"column": "embedding", "q": vector, "k": 10, **more})
    assert ("ANNSubIndex" in scanner.explain_plan()) == more.get("use_index", True)
    return scanner.to_table()["sample_id"].to_pylist()


def index_files(store: Store, table: str = "mini") -> set[str]:
    return {key for key in store.sizes("") if key.startswith(f"{table}.lance/_indices/")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with mini@1 and mini@2, of other rows in each split, beside the recipe."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mini.yaml").write_text(RECIPE)
    for snapshot, overrides in (("mini@1", []), ("mini@2", ["split.seed=3"])):
        assert build_recipe(folder / "mini.yaml", folder / "store", overrides, workers=1).snapshot == snapshot
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Store:
    """A copy elsewhere."""
    return Store(shutil.copytree(made / "store", tmp_path / "mine"))


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_a_search_finds_nine_of_the_ten_that_brute_force_finds(store, metric):
    found = written(Store(store), VECTORS, embedding=metric)
    queries_QD = clusters(4100, 0)[4000:]
    dots_QN = queries_QD @ VECTORS.T
    norms_N = np.linalg.norm(VECTORS, axis=1)
    likeness_QN = {"cosine": dots_QN / norms_N, "l2": 2 * dots_QN - norms_N**2, "dot": dots_QN}[metric]
    best = [{f"{row:05}" for row in np.argsort(-row_N)[:10]} for row_N in likeness_QN]
    hits = [len(wanted & set(nearest(Store(store), "pets", found.table.version, query))) for wanted, query in zip(best, queries_QD, strict=True)]
    assert np.mean(hits) / 10 > 0.9
    refined = [nearest(Store(store), "pets", found.table.version, query, refine_factor=3) for query in queries_QD]
    assert np.mean([len(wanted & set(ids)) for wanted, ids in zip(best, refined, strict=True)]) / 10 > 0.99


def test_rows_and_digest_are_those_of_a_table_without(store, tmp_path):
    with_one, without = written(Store(store), VECTORS), written(Store(tmp_path / "other"), VECTORS, embedding="l2")
    assert with_one.table.digest == without.table.digest and with_one.columns == without.columns
    assert lance.dataset(f"{store}/pets.lance").to_table() == lance.dataset(f"{store}/pets.lance", version=with_one.table.version - 1).to_table()
    assert with_one.indexes == {"embedding": {"metric": "cosine", "kind": "IVF_SQ", "vectors": 4000}}


def test_few_vectors_get_none(store):
    found = written(Store(store), VECTORS[: indexes.SMALLEST_ROWS - 1])
    assert found.indexes == {"embedding": {"metric": "cosine", "kind": None, "vectors": indexes.SMALLEST_ROWS - 1}}
    assert not index_files(Store(store), "pets") and found.table.version == 2


def test_vectors_of_zeros_have_no_direction(store):
    with pytest.raises(InputError, match=r"publish\.index\.embedding: none of its vectors can be placed; vectors of nothing but zeros"):
        written(Store(store), np.zeros((2000, 32), np.float32))


def test_who_publishes_meanwhile_keeps_what_is_theirs(store, monkeypatch):
    home, made_index, others = Store(store), indexes._make, []

    def interrupted(*args: Any) -> Any:
        if not others:
            others.append(None)
            others[0] = written(home, VECTORS[:2000])
        return made_index(*args)

    monkeypatch.setattr(indexes, "_make", interrupted)
    mine = written(home, VECTORS)
    for found, rows in ((others[0], 2000), (mine, 4000)):
        dataset = lance.dataset(f"{store}/pets.lance", version=found.table.version)
        assert dataset.count_rows() == rows and [one.num_rows_indexed for one in dataset.describe_indices()] == [rows]
        assert nearest(home, "pets", found.table.version, VECTORS[7])[0] == "00007"


def test_a_build_killed_between_rows_and_index_leaves_nothing_that_counts(store):
    died = subprocess.run([sys.executable, "-c", DYING, str(store)], check=False)
    assert died.returncode == -signal.SIGKILL
    home = Store(store)
    assert len(index_files(home, "pets")) == 2 and verify(home).sound
    assert {finding.kind for finding in verify(home).findings if "_indices/" in finding.key} == {"left over"}
    found = written(home, VECTORS)
    assert len(index_files(home, "pets")) == 4 and nearest(home, "pets", found.table.version, VECTORS[7])[0] == "00007"


def test_a_snapshot_is_searched_by_lancedb_in_a_copied_store(mine, made):
    vectors = {}
    for number in (1, 2):
        rows = open_snapshot(f"mini@{number}", mine).table()
        vectors = dict(zip(rows.frame(["sample_id"])["sample_id"], rows.vectors("embedding"), strict=True))
        table = lancedb.connect(mine.uri).open_table("mini")
        table.checkout(f"v{number}")
        wanted = next(iter(vectors))
        found = table.search(vectors[wanted]).metric("cosine").limit(3).select(["sample_id", "split"]).to_list()
        assert found[0]["sample_id"] == wanted and len(found) == 3
        assert nearest(mine, "mini", f"v{number}", vectors[wanted])[0] == wanted
    assert len(vectors) == 1797
    assert verify(mine).findings == []


def test_a_recipe_that_asks_for_an_index_gets_a_number_and_one_that_asks_for_none_doesnt(mine, made):
    asking = made / "mini.yaml"
    assert build_recipe(asking, mine.uri, ["publish.index.embedding=l2"], workers=1).snapshot == "mini@3"
    assert len({open_snapshot(f"mini@{number}", mine).manifest["digest"] for number in (1, 3)}) == 1
    assert build_recipe(asking, mine.uri, ["publish.index.embedding=l2"], workers=1).snapshot == "mini@3"
    without = build_recipe(asking, mine.uri, ["publish.index={}"], workers=1)
    assert without.snapshot in ("mini@1", "mini@3")
    assert build_recipe(asking, mine.uri, workers=1).snapshot == "mini@1"
    assert verify(mine).sound


def test_an_imported_snapshot_has_its_index_made_again(mine, tmp_path):
    export_snapshot(open_snapshot("mini@1", mine), tmp_path / "parquet", "parquet")
    other = Store(tmp_path / "other")
    assert import_snapshot(tmp_path / "parquet", other).snapshot == "mini@1"
    assert open_snapshot("mini@1", other).manifest["indexes"] == open_snapshot("mini@1", mine).manifest["indexes"]
    assert len(nearest(other, "mini", "v1", np.ones(64, np.float32))) == 10
    assert verify(other).findings == []


def test_show_says_what_is_indexed(mine):
    shown = CliRunner().invoke(app, ["show", "mini@1", "--store", mine.uri]).output
    assert "index of embedding: IVF_SQ, cosine, 1,797 vectors\n" in shown


def test_every_damaged_byte_and_missing_file_of_an_index_is_found(mine):
    for key in sorted(index_files(mine)):
        file = Path(mine.uri) / key
        whole = file.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            (finding,) = verify(mine).findings
            assert (finding.key, finding.kind, len(finding.snapshots)) == (key, "damaged", 1)
        file.unlink()
        (finding,) = verify(mine).findings
        assert (finding.key, finding.kind) == (key, "missing")
        file.write_bytes(whole)
    assert verify(mine).findings == []


def test_gc_keeps_an_index_as_long_as_its_snapshot(mine):
    before, held = set(mine.sizes("")), index_files(mine)
    left = Path(mine.uri) / "mini.lance/_indices/00000000-dead/index.idx"
    left.parent.mkdir()
    left.write_bytes(b"of a build that died")
    assert [finding.kind for finding in verify(mine).findings] == ["left over"]
    assert [removal.key for removal in gc(mine).removed] == ["mini.lance/_indices/00000000-dead/index.idx"]
    assert set(mine.sizes("")) == before and len(held) == 4
    removed = {removal.key for removal in gc(mine, Policy(keep_last=1)).removed}
    kept = index_files(mine)
    assert len(kept) == 2 and held - kept <= removed
    rows = open_snapshot("mini@2", mine).table()
    assert nearest(mine, "mini", "v2", rows.vectors("embedding")[5])[0] == rows.frame(["sample_id"])["sample_id"][5]
    assert verify(mine).findings == []


def test_a_forgotten_sample_is_in_no_index_of_any_version(mine, made):
    sample = open_snapshot("mini@1", mine).table().frame(["sample_id"])["sample_id"][0]
    old = index_files(mine)
    assert forget(mine, [sample]).snapshots == ["mini@1", "mini@2"]
    assert not index_files(mine) and verify(mine).sound
    assert build_recipe(made / "mini.yaml", mine.uri, workers=1).snapshot == "mini@3"
    assert len(index_files(mine)) == 2 and not old & index_files(mine)
    assert lance.dataset(mine.table_uri("mini"), version="v3").describe_indices()[0].num_rows_indexed == 1796
    assert verify(mine).findings == []
