"""stillroom build: what it prints of a result, and how a failure ends."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import flows.build
from flows.build import BuildResult
from flows.events import StageDone, StageFailed, StageStarted
from stillroom.errors import StageError
from tests.flows.report.conftest import judged


def stage(name: str, state: str = "Built", dropped: int = 0) -> dict:
    return {"name": name, "op": "prune.random", "state": state, "seconds": 1.25, "rows": 144, "dropped": dropped, "rejected": 0}


def result(**changes) -> BuildResult:
    stages = [stage("raw"), stage("core", dropped=1293), stage("core--random"), stage("proof--raw.hard")]
    usual = {"snapshot": "digits@3", "stages": stages, "proof": None, "report": "/r/3.html", "seconds": 9.9, "reused_all": False}
    return BuildResult(**(usual | changes))


@pytest.fixture
def building(monkeypatch):
    """Replaces the build by one that tells `events` and gives `made`, or raises it."""

    def put(made, events=()):
        def build_recipe(recipe, store, overrides, *, listener, **options):
            for event in events:
                listener(event)
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr(flows.build, "build_recipe", build_recipe)

    return put


def test_ends_with_the_stages_the_report_and_the_snapshot(stillroom, building):
    building(result())
    printed = stillroom("build", "digits.yaml").stdout
    core = next(line for line in printed.splitlines() if line.strip().startswith("core"))
    assert core.split() == ["core", "prune.random", "Built", "1.2", "144", "1,293"]
    assert printed.splitlines()[-3:] == ["report    /r/3.html", "snapshot  digits@3", "digits@3: done in 9.9 s"]


def test_stages_that_nobody_wrote_share_a_line(stillroom, building):
    building(result())
    printed = stillroom("build", "digits.yaml").stdout
    assert "2 hidden stages" in printed
    assert "core--random" not in printed


def test_judged_sets_are_printed_with_what_they_show(stillroom, building):
    building(result(judged=judged()))
    assert "tesla beats a random choice by more than the interval: +20.0 points" in stillroom("build", "digits.yaml").stdout


def test_a_proof_is_printed_with_what_it_shows(stillroom, building, proof):
    building(result(proof=proof))
    printed = stillroom("build", "digits.yaml").stdout
    assert "the snapshot beats its control by more than the interval: +3.1 points [+2.0, +4.0]" in printed
    assert "no gain shown" in next(line for line in printed.splitlines() if "−0.2" in line)


def test_reusing_everything_takes_one_line(stillroom, building):
    reused = [stage("raw", "Reused"), stage("core", "Reused")]
    building(result(stages=reused, reused_all=True), [StageDone("raw", "Reused", 144), StageDone("core", "Reused", 144)])
    ended = stillroom("build", "digits.yaml")
    assert ended.output == "digits@3: everything was there already, 2 stages reused (9.9 s)\n"


def test_json_is_the_whole_result_on_stdout_and_progress_on_stderr(stillroom, building):
    building(result(), [StageStarted("raw", "ingest.digits"), StageDone("raw", "Built", 144, seconds=1.0)])
    ended = stillroom("build", "digits.yaml", "--json")
    assert json.loads(ended.stdout)["snapshot"] == "digits@3"
    assert [line.split()[:3] for line in ended.stderr.splitlines()] == [["raw", "started", "ingest.digits"], ["✓", "raw", "Built"]]


def test_a_failed_stage_ends_with_the_same_command_quoted_for_a_shell(stillroom, building, tmp_path):
    building(StageError("core", "no row is left", "loosen it"), [StageFailed("core", "no row is left")])
    words = ["--store", str(tmp_path / "mit Lücke"), "--set", "raw.path=${env:DIR}", "--rows", "500", "--workers", "3", "--cluster", "auto"]
    ended = stillroom("build", "my digits.yaml", *words)
    error = ended.stderr.splitlines()[-1]
    command = error.partition("; go on with: ")[2]
    assert ended.exit_code == 1
    assert error.startswith("error: stage 'core': no row is left; loosen it; go on with: stillroom build ")
    assert shlex.split(command)[1:4] == ["build", str(Path("my digits.yaml").absolute()), "--store"]
    assert set(shlex.split(command)[3:]) == set(words)


@pytest.mark.server
def test_the_printed_command_goes_on_as_it_stands(stillroom, recipe, tmp_path):
    from PIL import Image

    photos = tmp_path / "meine Fotos" / "a"
    photos.mkdir(parents=True)
    for shade in range(4):
        Image.new("L", (8, 8), shade).save(photos / f"{shade}.png")
    (photos / "broken.png").write_bytes((photos / "0.png").read_bytes()[:40])
    path = recipe(
        f"""
name: photos
stages:
  raw: {{op: ingest.image_folder, path: "{photos.parent}"}}
publish:
  splits: {{train: raw}}
  require: {{max_rejects: 0%}}
""",
        "meine Rezepte.yaml",
    )
    ended = stillroom("build", path, "--store", tmp_path / "mein Store", "--workers", "1")
    assert ended.exit_code == 1, ended.output
    (photos / "broken.png").unlink()
    command = ended.stderr.splitlines()[-1].partition("; go on with: ")[2]
    # A user has the command on the path; the tests' interpreter may not be an activated one.
    path_with_us = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    again = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True, check=False, env={**os.environ, "PATH": path_with_us})
    assert "photos@1" in again.stdout, ended.output + again.stderr
