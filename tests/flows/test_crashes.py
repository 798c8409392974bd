"""Killed builds, told to Prefect: by the witness at once, else by the next command; a final state stays."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flows.crashes import report_crash, tell_crashed
from flows.server import ensure_server, public_url
from stillroom.stores import Store
from storage.runs import begin_run, end_run, list_runs, note_run
from tests.flows.asking import ask
from tests.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow]

WATCHED = """
import sys, time
from flows.crashes import Witness
witness = Witness(sys.argv[1])
print("watched", flush=True)
time.sleep(120)
"""


@pytest.fixture
def flow_run() -> str:
    """A flow run that says it is running."""
    flow = ask("flows/", {"name": "stillroom-build"})["id"]
    run = ask("flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
    ask(f"flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}})
    return run


def state(flow_run: str) -> str:
    return ask(f"flow_runs/{flow_run}")["state_type"]


def test_the_witness_tells_of_a_kill_and_of_nothing_else(flow_run):
    build = subprocess.Popen([sys.executable, "-c", WATCHED, flow_run], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert build.stdout is not None
    assert build.stdout.readline() == "watched\n"
    build.send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert state(flow_run) == "RUNNING"
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    wait_for(lambda: state(flow_run) == "CRASHED", 60)


@pytest.mark.parametrize("final", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_final_state_stays(flow_run, final):
    ask(f"flow_runs/{flow_run}/set_state", {"state": {"type": final}})
    report_crash(ensure_server(), flow_run, {}, None)
    assert state(flow_run) == final


def test_what_no_witness_saw_is_told_by_the_next_command_once(flow_run, store, monkeypatch):
    made = Store(store)
    run = begin_run(made, "photos", {}, "stillroom build photos.yaml")
    note_run(made, run, flow_run={"id": flow_run, "api": public_url(ensure_server())})
    tell_crashed(made)
    assert state(flow_run) == "RUNNING"
    holder = made.read_json(f"runs/{run}.json")["holder"]
    note_run(made, run, holder={**holder, "started": holder["started"] - 1})  # its number was given to this process later
    tell_crashed(made)
    assert state(flow_run) == "CRASHED"
    monkeypatch.setattr("flows.crashes.report_crash", lambda *told: pytest.fail("told twice"))
    tell_crashed(made)
    assert [found["state"] for found in list_runs(made)] == ["Crashed"]
    end_run(made, run, "Failed")
