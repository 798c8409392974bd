"""Worker processes from a fork server, started as a script or a notebook expects it."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, popen_forkserver, spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

__all__ = ["WorkerContext", "start_server"]

# How many times a fork server that can't be reached is asked again, a tenth of a second apart.
_PATIENCE = 50
# What the fork server is started with beside the environment of this process.
_environment: dict[str, str] = {}
# Of this process's environment and of what `spawn` tells a worker, both changed while one begins.
_one_at_a_time = threading.Lock()


def start_server(environment: Mapping[str, str]) -> None:
    """Start the fork server, if there is none, with these variables; whenever it was lost, it is started with them again."""
    with _one_at_a_time:
        _environment.update(environment)
        with _in_its_environment():
            forkserver.ensure_running()


@contextmanager
def _in_its_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _environment}
    os.environ.update(_environment)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


class _Popen(popen_forkserver.Popen):
    """Starts a worker that doesn't run the caller's main script again: it needs nothing of it.

    So a script or a notebook may build or stream without `if __name__ == "__main__":`.
    """

    def _launch(self, process_obj: Any) -> None:
        with _one_at_a_time:
            whole = spawn.get_preparation_data
            spawn.get_preparation_data = lambda name: {key: value for key, value in whole(name).items() if not key.startswith("init_main")}
            try:
                for _ in range(_PATIENCE):
                    with suppress(ConnectionRefusedError), _in_its_environment():  # the server was just killed, and isn't known to be gone yet
                        return super()._launch(process_obj)  # type: ignore[misc]
                    self._fds: list[int] = []
                    time.sleep(0.1)
                raise ConnectionRefusedError("the fork server that starts workers can't be reached")
            finally:
                spawn.get_preparation_data = whole


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)


class WorkerContext(ForkServerContext):
    """What `multiprocessing.get_context("forkserver")` gives, but its processes run nothing of the caller's main script."""

    Process = _Process
