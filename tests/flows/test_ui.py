"""What a browser shows of a build: its stages and its artifacts, on a server that isn't at Prefect's usual port."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.build import build_recipe
from tests.flows.asking import ask

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

RECIPE = """
name: seen
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  core: {op: prune.random, from: split.train, keep: 10%}
publish:
  splits: {train: core, validation: split.validation}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Opens an address, waits for the page to be drawn, and gives its DOM; the picture is kept beside the profile."""
    profile = tmp_path_factory.mktemp("chromium")

    def look(address: str) -> str:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=20000"]
        picture = f"--screenshot={profile / 'page.png'}"
        shown = subprocess.run([CHROMIUM, *flags, picture, "--window-size=1400,1400", "--dump-dom", address], capture_output=True, text=True, timeout=90)
        assert (profile / "page.png").stat().st_size > 20_000
        return shown.stdout

    return look


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium) to see what a browser shows")
def test_a_build_is_seen_with_its_stages_and_artifacts(browser, recipe, store):
    from flows.server import ensure_server

    ensure_server()
    build_recipe(recipe(RECIPE, "seen.yaml"), store, workers=1)
    stillroom = Path(sys.executable).parent / "stillroom"
    address = subprocess.run([stillroom, "ui", "--no-browser"], check=True, capture_output=True, text=True, env=dict(os.environ)).stdout.strip()
    (run,) = ask("flow_runs/filter", {"flow_runs": {"name": {"any_": ["seen"]}}})
    assert not address.endswith(":4200")
    stages = browser(f"{address}/v2/runs/flow-run/{run['id']}?tab=TaskRuns")
    assert all(f">{stage}<" in stages for stage in ("raw", "split", "core"))
    assert "Built" in stages
    artifacts = browser(f"{address}/v2/runs/flow-run/{run['id']}?tab=Artifacts")
    assert all(key in artifacts for key in ("plan", "rows-core", "samples-core", "report"))
