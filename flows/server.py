"""The Prefect server that builds report to: the one that `PREFECT_API_URL` names, else one for this user.

Prefect's own temporary servers take half a minute in every process and lose history at exit. So the
first build starts a server in the background, and later ones, in whatever process, use it again:

    STILLROOM_HOME/            default ~/.stillroom, for this user only
      server.json              pid, port and when it started
      server.lock              held while a server is started or stopped: two builds at once start one
      server.log               what the server said since it was last started
      prefect/                 its PREFECT_HOME: the database with the history, the UI's files

This file imports no Prefect: the settings that it makes have to stand in the environment before
`import prefect`. The server runs in STILLROOM_HOME with a minimal environment, so that neither a
`tasks.py` in the working directory nor a secret of the shell that happened to start it gets in.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener, urlopen

from flows.home import home
from stillroom.errors import InputError

__all__ = ["Server", "ensure_server", "public_url", "server_status", "stop_server"]

HOST = "127.0.0.1"
# Twice what the slowest first start (migrations, the UI's files) took on two busy cores.
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
PING_TIMEOUT_S = 5

# What a server inherits of the shell that starts it: enough to run Python, and nothing that may be a secret.
INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "USER")

# For the process that runs a flow. The terminal belongs to our progress: the run's log goes to the server alone.
CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Prefect writes the exception of a failed run to a file whatever persist_result says: as JSON, not as a pickle.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}


@dataclass(frozen=True)
class Server:
    """A Prefect server: its API's address, and its process where it is this user's own."""

    url: str
    pid: int | None = None
    port: int | None = None
    started: str | None = None

    @property
    def ours(self) -> bool:
        """Whether stillroom started it, and so may stop it."""
        return self.pid is not None

    @property
    def ui_url(self) -> str:
        """Where the UI is, for a browser."""
        return self.url.rstrip("/").removesuffix("/api")


def ensure_server(*, port: int | None = None, say: Callable[[str], None] | None = None) -> str:
    """The API's URL of a server that answers, started first if need be; prepares this process for Prefect.

    Afterwards `PREFECT_API_URL` and the settings for quiet runs stand in the environment, for this
    process and its children.

    Args:
        port: the port that the server has to have; None takes any, and the same as last time if it is free.
        say: called with a line for the user before something that takes a while.

    Raises:
        InputError: the server that `PREFECT_API_URL` names doesn't answer, this user's server runs on
            another port than asked for, or it doesn't start.
    """
    if url := _named_url():
        if port is not None:
            raise InputError(f"--port {port}", f"PREFECT_API_URL names the server {public_url(url)}", "unset it to use a server of your own")
        if not _answers(url):
            problem = f"no Prefect server answers at {public_url(url)}"
            raise InputError("PREFECT_API_URL", problem, "start it, or unset the variable to use a server of your own")
        _prepare_process({})
        return url
    with _lock():
        server = _own_server(say) or _start(port, say)
    if port not in (None, server.port):
        raise InputError(f"--port {port}", f"your server already runs on port {server.port}", "stop it first: stillroom ui --stop")
    # With its own PREFECT_HOME, no profile of the user's can send a build elsewhere or add an API key.
    _prepare_process({"PREFECT_API_URL": server.url, "PREFECT_HOME": str(home() / "prefect"), **_without_proxy()})
    return server.url


def server_status() -> Server | None:
    """The server that a build would use now, or None if it would have to start one."""
    if url := _named_url():
        return Server(url) if _answers(url) else None
    server = _recorded()
    return server if server and _answers(server.url) and _is_server(server) else None


def stop_server() -> bool:
    """Stop this user's server and wait until it has ended; False if none was running. Its history stays.

    Raises:
        InputError: `PREFECT_API_URL` names a server, which is not ours to stop.
    """
    if url := _named_url():
        raise InputError("PREFECT_API_URL", f"stillroom didn't start the server {public_url(url)}", "stop it where it was started")
    with _lock():
        server = _recorded()
        if server is None or not _is_server(server):
            return False
        _send_what_waits()
        _end(server)
        return True


def _named_url() -> str | None:
    """The server that the environment names; None where there is none, or where it is this user's own."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    recorded = _recorded()
    return None if not url or (recorded and url == recorded.url) else url


def _own_server(say: Callable[[str], None] | None) -> Server | None:
    """This user's server, if it runs; waits for one that another process has started and left."""
    server = _recorded()
    if server is None or not _is_server(server):
        return None
    if not _answers(server.url):
        _wait(server, say)
    return server


def _start(port: int | None, say: Callable[[str], None] | None) -> Server:
    folder = home()
    if port is not None and not _is_free(port):
        raise InputError(f"--port {port}", "the port is taken", "choose another one, or leave it out")
    port = port or _choose_port(_recorded())
    if say:
        say("starting the Prefect server in the background (half a minute the first time, then it stays)")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_server_environment(folder, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C nor a closed terminal ends it
        )
    server = Server(f"http://{HOST}:{port}/api", process.pid, port, datetime.now(UTC).isoformat(timespec="seconds"))
    process.returncode = 0  # it outlives us: Popen must not complain that it wasn't waited for
    _record(server)
    _wait(server)
    return server


def _wait(server: Server, say: Callable[[str], None] | None = None) -> None:
    """Wait until the server answers."""
    if say:
        say("waiting for the Prefect server, which is starting")
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(server.url):
        if not _is_alive(server.pid):
            raise InputError("Prefect server", f"it ended while starting: {_last_log_line()}", f"its log: {home() / 'server.log'}")
        if time.monotonic() > deadline:
            raise InputError("Prefect server", f"no answer on port {server.port} within {START_TIMEOUT_S} s", f"its log: {home() / 'server.log'}")
        time.sleep(0.2)


def _send_what_waits() -> None:
    """Let Prefect send the logs and events of this process now: at exit it would try for a minute to reach nobody."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all()
        EventsWorker.drain_all()


def _end(server: Server) -> None:
    assert server.pid is not None
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal_number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if not _is_alive(server.pid):
                return
            time.sleep(0.1)


def _server_environment(folder: Path, port: int) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {
        "PYTHONSAFEPATH": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "prefect"),
        # The UI takes the API's address from these two.
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        # By default, any web page that the user visits may talk to the API.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        # By default, the UI's files are copied into site-packages, which may be read-only or shared.
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "prefect" / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # By default, a hundred future runs of each schedule stand in the list of runs before the one that ran.
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "5",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }


def _prepare_process(settings: dict[str, str]) -> None:
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(settings)
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _without_proxy() -> dict[str, str]:
    """Prefect's client obeys HTTP_PROXY, and a proxy can't reach this machine's loopback."""
    excepted = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [*filter(None, excepted.split(",")), *([HOST] if HOST not in excepted.split(",") else [])]
    return {"NO_PROXY": ",".join(hosts), "no_proxy": ",".join(hosts)}


@contextmanager
def _lock() -> Iterator[None]:
    """Hold this user's server lock; the system lets go of it when the process ends, however it does."""
    import fcntl

    with open(home() / "server.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recorded() -> Server | None:
    """The server that was started last, running or not."""
    try:
        return Server(**json.loads((home() / "server.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _record(server: Server) -> None:
    part = home() / "server.json.part"
    part.write_text(json.dumps(asdict(server)))
    part.replace(home() / "server.json")


def _answers(url: str) -> bool:
    """Whether a server is there: any answer counts for one that may ask for a key or a certificate of its own."""
    try:
        if urlsplit(url).hostname == HOST:
            return build_opener(ProxyHandler({})).open(f"{url}/health", timeout=PING_TIMEOUT_S).read() == b"true"
        with urlopen(f"{url}/health", timeout=PING_TIMEOUT_S):
            return True
    except HTTPError:
        return urlsplit(url).hostname != HOST
    except URLError as fault:
        return isinstance(fault.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    with suppress(ChildProcessError):
        # A child of ours that ended stays a zombie, which os.kill takes for alive, until it is waited for.
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # PermissionError: another user's, so the number was given again
        return False
    return True


def _is_server(server: Server) -> bool:
    """Whether that process is the server still, and not another one that got its number later."""
    if not _is_alive(server.pid):
        return False
    proc = Path(f"/proc/{server.pid}/cmdline")
    if proc.parent.parent.joinpath("self").exists():
        with suppress(OSError):
            return f"\0--port\0{server.port}\0" in proc.read_bytes().decode(errors="replace")
        return False
    listed = subprocess.run(["ps", "-o", "command=", "-p", str(server.pid)], capture_output=True, text=True, check=False).stdout
    return f"--port {server.port}" in listed


def _choose_port(last: Server | None) -> int:
    """The last server's port if it is free, so that bookmarks and workers stay right, else any free one."""
    if last and last.port and _is_free(last.port):
        return last.port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def public_url(url: str) -> str:
    """The address without a password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _last_log_line() -> str:
    with suppress(OSError):
        lines = [line for line in (home() / "server.log").read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"
    return "it left no log"
