"""What a build shows in the Prefect UI, written to a real server and read back."""

import json
import os
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from flows import artifacts
from flows.artifacts import sample_groups
from stillroom.fields import image_field
from stillroom.images import encode_png
from stillroom.repeats import hashed
from stillroom.tables import MemoryTable
from tests.flows.asking import ask
from tests.flows.report.conftest import judged

STAGES = [
    {"name": "raw", "op": "ingest.digits", "reuse": True, "reason": "built before (1,797 rows)", "rows": 1797},
    {"name": "core", "op": "prune.random", "reuse": False, "reason": "keep: 0.1 → 0.2", "rows": None},
]
PROOF = {
    "arms": [
        {"arm": "candidate.stored", "rows": 648, "seeds": 5, "accuracy": 0.971, "low": 0.967, "high": 0.975},
        {"arm": "control.stored", "rows": 648, "seeds": 5, "accuracy": 0.94, "low": 0.93, "high": 0.95},
    ],
    "differences": [{"arm": "candidate.stored", "against": "control.stored", "gain": 0.031, "low": 0.02, "high": 0.04}],
}


def samples(shades: list[int], **columns: Any) -> MemoryTable:
    """A table with an 8x8 image of each shade, `id<shade>` its id."""
    ids = [f"id{shade}" for shade in shades]
    images = [encode_png(np.full((8, 8, 1), shade, np.uint8)) for shade in shades]
    fields = [pa.field("sample_id", pa.string()), image_field(), *(pa.field(name, pa.bool_()) for name in columns)]
    return MemoryTable(pa.table([ids, images, *columns.values()], schema=pa.schema(fields)))


def removed(ids: list[str], kind: str, reason: str) -> MemoryTable:
    return MemoryTable(pa.table({"sample_id": ids, "source": ids, "reason": [reason] * len(ids), "kind": [kind] * len(ids)}))


def shades(group: dict[str, Any]) -> list[int]:
    return [int(np.asarray(Image.open(BytesIO(image)))[0, 0]) for image in group["images"]]


def test_samples_that_left_are_grouped_by_reason_with_their_images_from_the_input():
    groups = sample_groups(samples([1, 2]), removed(["id30", "id40"], "dropped", "too far"), [samples([1, 2, 30, 40])])
    assert [(group["title"], group["note"], shades(group)) for group in groups] == [
        ("kept", "2 rows", [1, 2]),
        ("dropped", "2 rows: too far", sorted([30, 40], key=lambda shade: hashed(pl.Series([f"id{shade}"]))[0])),
    ]


def test_synthetic_samples_stand_apart():
    groups = sample_groups(samples([1, 2, 3], synthetic=[False, True, True]))
    assert [(group["title"], shades(group)) for group in groups] == [("real", [1]), ("synthetic", [2, 3])]


def test_of_many_samples_some_from_all_over_are_shown():
    (group,) = sample_groups(samples(list(range(240))))
    found = shades(group)
    assert len(found) == artifacts.PICTURES
    assert (found[0], found[-1]) == (0, 239)
    assert max(np.diff(found)) <= 12


def test_a_table_without_images_has_no_groups():
    assert sample_groups(MemoryTable(pa.table({"sample_id": ["a"]}))) == []


@pytest.fixture(scope="module")
def in_a_run() -> Callable[[Callable[[], None]], list[dict[str, Any]]]:
    """Calls a function in a task of a flow on this session's server, and gives what artifacts came of it."""
    from flows.server import ensure_server

    ensure_server()
    from prefect import flow, runtime, task

    def run(write: Callable[[], None]) -> list[dict[str, Any]]:
        ran = []

        @task
        def stage() -> None:
            write()

        @flow
        def build() -> None:
            ran.append(str(runtime.flow_run.id))
            stage.submit().result()

        build()
        wanted = {"artifacts": {"flow_run_id": {"any_": ran}}, "sort": "CREATED_DESC"}
        return ask("artifacts/filter", wanted)

    return run


@pytest.mark.server
def test_the_plan_is_a_table_of_what_runs_and_why(in_a_run):
    (plan,) = in_a_run(lambda: artifacts.plan_artifact(STAGES))
    assert (plan["key"], plan["description"]) == ("plan", "Plan: 1 of 2 stages run, the others are reused.")
    assert [(line["stage"], line["action"], line["why"]) for line in json.loads(plan["data"])] == [
        ("raw", "reuse", "built before (1,797 rows)"),
        ("core", "run", "keep: 0.1 → 0.2"),
    ]


@pytest.mark.server
def test_rows_belong_to_the_task_of_their_stage(in_a_run):
    line = {"name": "core", "op": "prune.random", "state": "Built", "in": 1437, "out": 144, "dropped": 1293, "rejected": 0, "seconds": 1.25}
    (rows,) = in_a_run(lambda: artifacts.rows_artifact([line], "core"))
    assert rows["key"] == "rows-core"
    assert rows["task_run_id"] is not None
    assert rows["description"] == "Rows of core: 1,293 dropped, 0 rejected."
    assert json.loads(rows["data"])[0]["in"] == "1,437"


@pytest.mark.server
def test_samples_are_a_sheet_of_pictures_a_group(in_a_run):
    group = {"title": "dropped", "note": "2 rows: <b>a|b</b>", "images": [encode_png(np.full((8, 8, 1), 9, np.uint8))] * 2 + [b"broken"]}
    (shown,) = in_a_run(lambda: artifacts.samples_artifact("core_a", [group]))
    assert shown["key"] == "samples-core-a"
    assert "&lt;b&gt;a\\|b&lt;/b&gt;" in shown["data"]
    sheet = Image.open(BytesIO(b64decode(shown["data"].partition("base64,")[2].partition(")")[0])))
    # Two pictures of 8 pixels, six times as large, a gap between them; the broken one is left out.
    assert sheet.size == (48 + 4 + 48, 48)


@pytest.mark.server
def test_the_proof_says_what_it_comes_to(in_a_run):
    (proof,) = in_a_run(lambda: artifacts.proof_artifact(PROOF))
    assert proof["description"] == "The snapshot beats its control by more than the interval."
    assert "| +3.1 | \\[+2.0, +4.0\\] |" in proof["data"]


@pytest.mark.server
def test_judged_sets_say_what_they_come_to(in_a_run):
    (shown,) = in_a_run(lambda: artifacts.judged_artifact(judged()))
    assert (shown["key"], shown["description"].partition(":")[0]) == ("judged", "tesla beats a random choice by more than the interval")
    assert "| tesla | 10 | 70.0\u00a0% \\[68.0,\u00a072.0\\] | random | 50.0\u00a0% | +20.0 | \\[+19.0, +21.0\\] |" in shown["data"]


@pytest.mark.server
def test_the_report_is_an_address_that_can_be_copied(in_a_run):
    (report,) = in_a_run(lambda: artifacts.report_link_artifact("/my store/ß/3.html", "digits@3"))
    assert "    file:///my%20store/%C3%9F/3.html" in report["data"]


@pytest.mark.server
def test_progress_of_a_long_stage_is_one_artifact_from_whatever_thread(in_a_run, monkeypatch):
    monkeypatch.setattr(artifacts, "PROGRESS_PAUSE_S", 0.05)

    def work() -> None:
        bar = artifacts.ProgressBar("painter")
        for done in (1, 2, 3):
            time.sleep(0.1)
            thread = threading.Thread(target=bar.update, args=(done, 4))
            thread.start()
            thread.join()
        bar.finish()

    (progress,) = in_a_run(work)
    assert (progress["key"], progress["type"], progress["data"]) == ("progress-painter", "progress", 100.0)


@pytest.mark.server
def test_a_short_stage_has_no_progress(in_a_run):
    def work() -> None:
        bar = artifacts.ProgressBar("core")
        bar.update(1, 2)
        bar.finish()

    assert in_a_run(work) == []


@pytest.mark.server
def test_what_goes_wrong_is_a_line_in_the_log_and_no_failure(in_a_run):
    assert in_a_run(lambda: artifacts.plan_artifact([{"name": "raw"}])) == []


@pytest.mark.server
def test_a_server_that_is_gone_fails_no_build(in_a_run, monkeypatch, caplog):
    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("prefect.artifacts.create_table_artifact", gone)
    artifacts.plan_artifact(STAGES)
    assert "plan_artifact wrote no artifact: ConnectionError: gone" in caplog.text
    assert os.environ["PREFECT_API_URL"]
