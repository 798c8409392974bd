"""What the tests of the commands share: a way to run them, and a store with a published snapshot's manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stillroom.sealed import seal


@pytest.fixture
def stillroom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs `stillroom WORDS…` in an empty folder of its own and gives exit code, stdout and stderr."""
    from flows.cli.app import app

    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], prog_name="stillroom")


@pytest.fixture
def proof() -> dict[str, Any]:
    """A proof in which the snapshot beats its control, and does not show a difference from the raw data."""

    def arm(name: str, rows: int, accuracy: float) -> dict[str, Any]:
        return {"arm": name, "rows": rows, "lr": 0.003, "seeds": 5, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}

    return {
        "arms": [arm("candidate.stored", 648, 0.971), arm("raw.hard", 1078, 0.973), arm("control.stored", 648, 0.94)],
        "differences": [
            {"arm": "candidate.stored", "against": "control.stored", "gain": 0.031, "low": 0.02, "high": 0.04},
            {"arm": "candidate.stored", "against": "raw.hard", "gain": -0.002, "low": -0.01, "high": 0.006},
        ],
    }


@pytest.fixture
def published(tmp_path: Path, proof: dict[str, Any]) -> Path:
    """A store with the manifest of digits@1, not promoted, and nothing else: `show` must need no table."""
    stage = {"op": "ingest.digits", "rows": 1797, "counts": {"in": 1797, "dropped": 0, "rejected": 3}, "seconds": 1.25, "fingerprint": "cd" * 32}
    stage |= {"shape": "source", "gives": "samples", "hidden": False, "inputs": {}, "table": {"name": "stages/digits.raw", "version": 2}, "removed": None}
    manifest = {
        "format": 1,
        "name": "digits",
        "number": 1,
        "created": "2026-11-25T04:30:00+00:00",
        "digest": "ab" * 32,
        "rows": 1367,
        "splits": {"train": 648, "validation": 359, "test": 360},
        "table": {"name": "digits", "version": 2, "rows": 1367, "fingerprint": "ef" * 32, "digest": "ab" * 32, "columns": {}},
        "files": {},
        "recipe": {"text": "", "path": "quickstart.yaml", "overrides": []},
        "seed": 7,
        "trial": False,
        "stages": [{"name": "raw", **stage}, {"name": "core--random", **stage}],
        "gates": [{"name": "schema: sample_id unique", "column": "sample_id", "ok": True, "failed": 0, "examples": []}],
        "proof": proof,
        "seconds": 180.2,
    }
    path = tmp_path / "store" / "snapshots" / "digits" / "1.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(seal(manifest))
    return tmp_path / "store"


MINI = """
name: mini
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  core: {op: prune.random, from: split.train, keep: 10%}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""


@pytest.fixture
def mini(recipe: Callable[[str], Path]) -> Path:
    """A recipe of three stages over the embedded digits."""
    return recipe(MINI)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A store with pets@1, which has six rows, and no stage."""
    import pyarrow as pa

    from stillroom.fields import image_field, label_field
    from stillroom.stored import hash_field, hashes, table_bytes
    from stillroom.stores import Store
    from storage.commits import commit_fragments, version_facts, write_batches
    from storage.publish import publish_manifest
    from storage.tally import Tally

    store = Store(tmp_path / "store")
    images = pa.array([b"\x89PNG\r\n\x1a\n%d" % number for number in range(6)], pa.binary())
    schema = pa.schema([("sample_id", pa.string()), image_field(), hash_field("image"), label_field(["cat", "dog"]), ("split", pa.string())])
    table = pa.table([[f"{number}" for number in range(6)], images, hashes(images), [0, 1] * 3, ["train"] * 4 + ["test"] * 2], schema=schema)
    tally = Tally(schema)
    fragments = write_batches(store, "pets", tally.watch(table.to_batches()), schema)
    ref = commit_fragments(store, "pets", schema, fragments, fingerprint="ab" * 32)
    where = {"name": "pets", "version": ref.version, "fingerprint": ref.fingerprint, "rows": 6, "digest": tally.digest.hexdigest(), "columns": {}}
    manifest = {"format": 1, "name": "pets", "digest": where["digest"], "rows": 6, "splits": {"train": 4, "test": 2}, "table": where, "trial": False}
    files = version_facts(store, [ref], {})
    publish_manifest(store, manifest | {"files": files, "bytes": table_bytes(store, ref), "stages": [], "gates": [], "proof": None})
    return tmp_path / "store"
