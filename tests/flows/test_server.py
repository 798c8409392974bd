"""The Prefect server of a user: started once, found again, told from others, and closed to what isn't its own.

Everything happens in processes of their own, as builds do: settings have to stand before `import prefect`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from flows.server import Server, ensure_server, server_status, stop_server
from stillroom.errors import InputError

SECRET = "tR0mbone-do-not-leak"

ENSURE = "from flows.server import ensure_server; print(ensure_server())"

BUILD = """
from flows.server import ensure_server
ensure_server()
from prefect import flow, task

@task
def stage(number):
    return number

@flow(flow_run_name="six")
def build():
    return sum(future.result() for future in [stage.submit(number) for number in range(6)])

@flow(flow_run_name="broken")
def broken():
    raise ValueError("the reason")

print(build())
try:
    broken()
except ValueError as error:
    print(error)
"""


@dataclass
class Started:
    """The server under test, and what the two processes that asked for it at once were given."""

    home: Path
    urls: list[str]

    @property
    def state(self) -> dict:
        return json.loads((self.home / "server.json").read_text())

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own(self.home, **environment), timeout=60)

    def post(self, path: str) -> list[dict]:
        request = Request(f"{self.state['url']}/{path}", b"{}", {"content-type": "application/json"})
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)


def own(home: Path, **environment: str) -> dict[str, str]:
    """An environment in which `home` is the user's, and nothing of Prefect's is set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return kept | {"STILLROOM_HOME": str(home), **environment}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server that two processes asked for at the same time, in a folder that is out to harm them."""
    home = tmp_path_factory.mktemp("server") / "Zuhause, ক"
    hostile = tmp_path_factory.mktemp("hostile")
    for name in ("tasks", "flows", "prefect", "uvicorn"):
        (hostile / f"{name}.py").write_text("open(__file__ + '.was-run', 'w')\nraise SystemExit('hostile')\n")
    # As the console script does: the folder of the script comes first on the path, not the working directory.
    asked = [
        subprocess.Popen([sys.executable, "-P", "-c", ENSURE], cwd=hostile, env=own(home, TOKEN=SECRET), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    urls = [process.communicate(timeout=120)[0].strip() for process in asked]
    assert not list(hostile.glob("*.was-run"))
    found = Started(home, urls)
    yield found
    if (home / "server.json").exists():
        found.python("from flows.server import stop_server; stop_server()")


@pytest.mark.server
def test_two_builds_at_once_start_one_server(started):
    assert started.urls == [started.state["url"]] * 2


@pytest.mark.server
def test_a_later_process_uses_it_again(started):
    assert started.python(ENSURE).stdout.strip() == started.state["url"]


@pytest.mark.server
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_server_inherits_no_secret_and_stands_in_its_own_folder(started):
    process = Path(f"/proc/{started.state['pid']}")
    assert SECRET.encode() not in (process / "environ").read_bytes()
    assert (process / "cwd").readlink() == started.home


@pytest.mark.server
def test_nobody_else_may_read_what_it_keeps(started):
    assert started.home.stat().st_mode & 0o077 == 0


@pytest.mark.server
def test_the_ui_is_served_and_knows_the_address_of_the_api(started):
    root = started.state["url"].removesuffix("/api")
    with urlopen(f"{root}/ui-settings", timeout=10) as settings, urlopen(root, timeout=10) as page:
        assert json.load(settings)["api_url"] == started.state["url"]
        assert b"<html" in page.read()


@pytest.mark.server
def test_no_other_web_page_may_talk_to_the_api(started):
    request = Request(f"{started.state['url']}/health", headers={"Origin": "http://example.org"})
    with urlopen(request, timeout=10) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") is None


@pytest.mark.server
def test_a_run_is_quiet_and_its_history_outlives_its_process(started):
    ran = started.python(BUILD)
    assert (ran.stdout, ran.stderr) == ("15\nthe reason\n", "")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = [run["state_name"] for run in started.post("task_runs/filter")]
        if states == ["Completed"] * 6:
            break
        time.sleep(0.2)
    assert states == ["Completed"] * 6
    assert {run["name"]: run["state_name"] for run in started.post("flow_runs/filter")} == {"six": "Completed", "broken": "Failed"}


@pytest.mark.server
def test_what_a_failed_run_leaves_is_no_pickle(started):
    started.python(BUILD)
    kept = list((started.home / "prefect" / "storage").iterdir())
    assert kept
    assert all(json.loads(file.read_text())["message"] == "the reason" for file in kept)


@pytest.mark.server
def test_another_port_than_its_own_is_refused_with_the_way_out(started):
    asked = started.python("from flows.server import ensure_server; ensure_server(port=1)")
    assert f"your server already runs on port {started.state['port']}; stop it first: stillroom ui --stop" in asked.stderr


@pytest.mark.server
def test_the_command_prints_the_address_and_nothing_else(started):
    asked = started.python("from flows.cli.app import app; app(['ui', '--no-browser'])")
    assert asked.stdout == started.state["url"].removesuffix("/api") + "\n"


@pytest.mark.server
def test_a_named_server_is_used_and_left_alone(started, tmp_path):
    code = "from flows.server import *; print(ensure_server(), server_status().ours); stop_server()"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own(tmp_path, PREFECT_API_URL=started.state["url"]))
    assert asked.stdout == f"{started.state['url']} False\n"
    assert "stop it where it was started" in asked.stderr
    assert not (tmp_path / "server.json").exists()


@pytest.mark.server
def test_stopping_ends_it_and_keeps_its_state_for_the_next_start(started):
    state = started.state
    # Whoever started it has ended long ago, so a reaper of the system's takes it.
    asked = started.python("from flows.server import stop_server, server_status; print(stop_server(), stop_server(), server_status())")
    assert asked.stdout == "True False None\n"
    with pytest.raises(OSError):
        urlopen(f"{state['url']}/health", timeout=2)
    assert started.state == state


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder without a server."""
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def record(home: Path, **changes: object) -> None:
    server = {"url": "http://127.0.0.1:9/api", "pid": 2**22 + 1, "port": 9, "started": "2026-11-25T04:30:00+00:00"}
    (home / "server.json").write_text(json.dumps(server | changes))


def test_a_state_file_of_a_server_that_is_gone_counts_for_nothing(home):
    record(home)
    assert server_status() is None
    assert stop_server() is False


def test_a_process_that_got_the_same_number_later_is_not_stopped(home):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record(home, pid=bystander.pid)
    assert stop_server() is False
    assert bystander.poll() is None
    bystander.send_signal(signal.SIGKILL)
    bystander.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_state_file_that_was_cut_short_counts_for_nothing(home, text):
    (home / "server.json").write_text(text)
    assert server_status() is None


def test_a_named_server_that_does_not_answer_is_one_line_without_its_password(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:{SECRET}@127.0.0.1:9/api")
    with pytest.raises(InputError) as error:
        ensure_server()
    assert str(error.value).startswith("PREFECT_API_URL: no Prefect server answers at http://127.0.0.1:9/api; start it")


def test_the_address_of_the_ui_is_the_apis_without_its_last_part():
    assert Server("http://127.0.0.1:4200/api").ui_url == "http://127.0.0.1:4200"
