"""Builds that were killed, told to Prefect: it learns of their end from nobody else.

Beside each flow run stands a witness: a process of its own, of a few megabytes, at the other end of
a pipe. The system closes that pipe when the build's process ends, however it ends, and then the
witness looks at the flow run: one that still says `Running` has crashed. A build that is slow,
stopped or on a machine that sleeps keeps the pipe open, so it is never taken for dead, as it would
be by a heartbeat that comes too late; and one that ended rightly has a final state, which stays.

What no witness saw (the whole machine went down) is told by the next command that looks.

The witness runs this file alone, without site-packages: it imports the standard library only.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from stillroom.stores import Store

__all__ = ["Witness", "tell_crashed"]

MESSAGE = "The build's process ended without a word: it was killed, or its machine went down."
# How long the witness tries to reach a server that doesn't answer.
PATIENCE_S = 60.0
# How many of the newest runs a build looks at: a store may hold years of nights.
LOOKED_AT = 50


class Witness:
    """A process that outlives this one and reports the flow run as crashed if it has no final state then."""

    def __init__(self, flow_run: str) -> None:
        told = json.dumps({"flow_run": flow_run, **_reach()}).encode()
        command = [sys.executable, "-I", "-S", __file__]
        # A session of its own: neither Ctrl-C nor a kill of the build's process group ends it.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True)
        assert process.stdin is not None
        self._pipe = process.stdin
        with suppress(OSError):
            self._pipe.write(told + b"\n")
            self._pipe.flush()
        process.wait()  # it has forked, and its child is nobody's

    def release(self) -> None:
        """The flow run is over, though this process goes on."""
        with suppress(OSError):
            self._pipe.close()


def tell_crashed(store: "Store") -> None:
    """Tell the Prefect server, if it answers, which builds of a store were killed without a witness."""
    from flows.server import public_url, server_status
    from storage.alive import is_here
    from storage.runs import list_runs, note_run

    lost = [run for run in list_runs(store, LOOKED_AT) if run["state"] == "Crashed" and run.get("flow_run") and not run.get("told")]
    server = server_status() if lost else None
    if server is None:
        return
    for run in lost:
        if run["flow_run"]["api"] != public_url(server.url):
            continue
        with suppress(OSError, ValueError):
            report_crash(server.url, run["flow_run"]["id"], {}, None)
            if is_here(run["holder"]):
                note_run(store, run["id"], told=True)


def report_crash(api: str, flow_run: str, headers: dict[str, str], cafile: str | None) -> None:
    """Set a flow run, and those of its task runs that aren't over, to Crashed; one with a final state stays as it is."""
    if _ask(api, f"flow_runs/{flow_run}", None, headers, cafile)["state_type"] not in ("RUNNING", "PENDING"):
        return
    state = {"state": {"type": "CRASHED", "name": "Crashed", "message": MESSAGE}, "force": False}
    _ask(api, f"flow_runs/{flow_run}/set_state", state, headers, cafile)
    open_ones = {"flow_runs": {"id": {"any_": [flow_run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    for task_run in _ask(api, "task_runs/filter", open_ones, headers, cafile):
        with suppress(HTTPError):
            _ask(api, f"task_runs/{task_run['id']}/set_state", state, headers, cafile)


def _reach() -> dict[str, Any]:
    """How Prefect's client of this process reaches its server."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    with get_client(sync_client=True) as client:
        known = {name: value for name, value in client._client.headers.items() if name.lower() == "authorization"}
    return {"api": str(api.url), "headers": known, "cafile": api.ssl_cert_file}


def _ask(api: str, path: str, body: Any, headers: dict[str, str], cafile: str | None) -> Any:
    handlers: list[Any] = [ProxyHandler({})] if urlsplit(api).hostname == "127.0.0.1" else []
    if cafile:
        import ssl

        handlers.append(HTTPSHandler(context=ssl.create_default_context(cafile=cafile)))
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{api.rstrip('/')}/{path}", data, {"content-type": "application/json", **headers})
    with build_opener(*handlers).open(request, timeout=10) as answer:
        return json.load(answer)


def _witness() -> None:
    """Wait for the end of the process at the other end of stdin, then look after its flow run."""
    if os.fork():
        os._exit(0)
    told = json.loads(sys.stdin.buffer.readline())
    sys.stdin.buffer.read()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            report_crash(told["api"], told["flow_run"], told["headers"], told["cafile"])
            return
        except HTTPError:
            return  # the server answers, and knows no such run, or us
        except (URLError, OSError):
            time.sleep(1)


if __name__ == "__main__":
    _witness()
