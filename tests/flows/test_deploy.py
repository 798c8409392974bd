"""Builds on a schedule, served by a process: a quiet night gives no number, and a failed or killed one runs the command."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.server import ensure_server
from stillroom.errors import InputError
from stillroom.snapshots import list_snapshots
from stillroom.stores import Store
from storage.runs import list_runs
from tests.flows.asking import ask
from tests.photos import paint
from tests.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """name: nightly
seed: 1
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
publish:
  splits: {train: split.train, validation: split.validation, test: split.test}
  require: {max_rejects: 0%}
"""
TELLING = "import json, os, sys; print(json.dumps({n: v for n, v in os.environ.items() if n.startswith('STILLROOM_')}), file=open(sys.argv[1], 'a'))"


PATIENCE_S = 90


class Nights:
    """A deployment that a process serves, of a recipe whose path a shell would take for a command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.told = folder, folder / "store", folder / "told"
        self.recipe = folder / "a $(touch pwned) `touch pwned`.yaml"
        self.recipe.write_text(RECIPE)
        for number in range(20):
            paint(folder, number)
        ensure_server()
        command = shlex.join([sys.executable, "-c", TELLING, str(self.told)])
        words = ["deploy", str(self.recipe), "--store", str(self.store), "--cron", "0 2 29 2 *", "--name", folder.name, "--on-failure", command]
        code = "from flows.cli.app import main; main()"
        often = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, env=often, stderr=subprocess.PIPE, text=True)
        self.deployment = wait_for(self._deployed, PATIENCE_S)["id"]

    def _deployed(self) -> Any:
        assert self.process.poll() is None
        return next(iter(ask("deployments/filter", {"deployments": {"name": {"any_": [self.folder.name]}}})), None)

    def begin(self) -> str:
        return str(ask(f"deployments/{self.deployment}/create_flow_run", {})["id"])

    def night(self) -> str:
        """How a night ends."""
        run = self.begin()
        return str(wait_for(lambda: (state := ask(f"flow_runs/{run}")["state_type"]) in ("COMPLETED", "FAILED", "CRASHED") and state, PATIENCE_S))

    def said(self) -> dict[str, str]:
        """What the command was told last; it is called once a night."""
        (line,) = wait_for(lambda: self.told.exists() and self.told.read_text().splitlines(), PATIENCE_S)
        self.told.unlink()
        return dict(json.loads(line))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """The deployment, until the module's tests are over."""
    made = Nights(tmp_path_factory.mktemp("nights"))
    yield made
    made.process.terminate()
    made.process.wait(30)


def test_nights_that_are_quiet_fail_and_are_killed(nights):
    assert nights.night() == "COMPLETED"
    assert nights.night() == "COMPLETED"
    assert [snapshot["number"] for snapshot in list_snapshots(nights.store)] == [1]
    assert not nights.told.exists()

    broken = nights.folder / "photos/a/broken.png"
    broken.write_bytes(b"no picture")
    assert nights.night() == "FAILED"
    told = nights.said()
    assert told["STILLROOM_RECIPE"] == str(nights.recipe)
    assert told["STILLROOM_STAGE"] == "raw"
    assert "reject" in told["STILLROOM_ERROR"]
    newest = list_runs(Store(nights.store), 1)[0]
    assert (newest["state"], newest["stage"], newest["command"]) == ("Failed", "raw", told["STILLROOM_RESUME"])
    broken.unlink()
    # The command goes on from any folder, whatever the recipe's name would do in a shell.
    again = shlex.split(told["STILLROOM_RESUME"])
    assert subprocess.run([sys.executable, "-c", "from flows.cli.app import main; main()", *again[1:]], cwd="/", check=False).returncode == 0

    nights.recipe.write_text(RECIPE.replace("seed: 1", "seed: 2"))
    nights.begin()
    store = Store(nights.store)
    pid = wait_for(lambda: next((run["holder"]["pid"] for run in list_runs(store, 1) if run["state"] == "Running" and run.get("flow_run")), None), PATIENCE_S)
    os.kill(pid, signal.SIGKILL)
    told = nights.said()
    assert "ended without a word" in told["STILLROOM_ERROR"]
    assert told["STILLROOM_RESUME"].startswith("stillroom build ")

    nights.recipe.unlink()
    assert nights.night() == "FAILED"
    told = nights.said()
    assert "no such recipe" in told["STILLROOM_ERROR"]
    assert not (nights.folder / "pwned").exists()


@pytest.mark.parametrize(("cron", "timezone", "name"), [("every night", "UTC", "x"), ("0 2 * * *", "Mars/Base", "x"), ("0 2 * * *", "UTC", "a/b")])
def test_what_is_no_schedule_is_refused_in_a_line(tmp_path, cron, timezone, name):
    from flows.deploy import Night, serve

    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nseed: 1\nstages:\n  raw: {op: ingest.digits}\n")
    with pytest.raises(InputError):
        serve(Night(str(recipe), str(tmp_path / "store"), [], ""), cron, timezone, name, lambda text: None)
