"""A build and a deployment's run in a folder with somebody's own `tasks.py` and `flows.py`, which must stay unread."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.asking import ask

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """
name: mini
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  core: {op: prune.random, from: split.train, keep: 10%}
publish:
  splits: {train: core, validation: split.validation}
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules leave a trace when they are imported, and then end the process."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("flows", "prefect", "schemas", "stillroom", "storage", "tasks"):
        (folder / f"{name}.py").write_text("open(__file__ + '.was-run', 'w')\nraise SystemExit('hostile')\n")
    return folder


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.was-run"))


def command(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs an installed command, as a shell in that folder does."""
    program, *rest = map(str, words)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([BIN / program, *rest], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=300)


def test_a_build_imports_nothing_from_it(hostile: Path, recipe: Callable[[str], Path], store: Path):
    built = command("stillroom", "build", recipe(RECIPE), "--store", store, "--workers", 1, cwd=hostile)
    assert "mini@1" in built.stdout, built.stderr
    assert traces(hostile) == []


def test_a_run_of_the_deployment_imports_nothing_from_it(hostile: Path, recipe: Callable[[str], Path], store: Path, tmp_path: Path):
    from flows.server import ensure_server

    api = ensure_server()
    prefect = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect"), "DO_NOT_TRACK": "1"}
    places = {"STILLROOM_RECIPE": str(recipe(RECIPE)), "STILLROOM_STORE": str(store)}
    ask("work_pools/", {"name": "stillroom", "type": "process"})
    deployed = command("prefect", "--no-prompt", "deploy", "--name", "nightly", cwd=REPOSITORY, **prefect, **places)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    (deployment,) = ask("deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    ask(f"deployments/{deployment['id']}/create_flow_run", {})
    worked = command("prefect", "worker", "start", "--pool", "stillroom", "--run-once", cwd=hostile, **prefect)
    states = [run["state_name"] for run in ask("flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}}) if run["start_time"]]
    assert states == ["Completed"], worked.stdout + worked.stderr
    assert (store / "snapshots" / "mini" / "1.json").exists()
    assert traces(hostile) == []
