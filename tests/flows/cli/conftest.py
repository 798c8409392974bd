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
    stage = {"op": "ingest.digits", "rows": 1797, "counts": {"in": 1797, "dropped": 0, "rejected": 3}, "seconds": 1.25}
    manifest = {
        "format": 1,
        "name": "digits",
        "number": 1,
        "created": "2026-11-25T04:30:00+00:00",
        "digest": "ab" * 32,
        "rows": 1367,
        "splits": {"train": 648, "validation": 359, "test": 360},
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
