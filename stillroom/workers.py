"""Worker processes from a fork server, started as a script or a notebook expects it."""

import threading
import time
from contextlib import suppress
from multiprocessing import popen_forkserver, spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

__all__ = ["WorkerContext"]

# How many times a fork server that can't be reached is asked again, a tenth of a second apart.
_PATIENCE = 50


class _Popen(popen_forkserver.Popen):
    """Starts a worker that doesn't run the caller's main script again: it needs nothing of it.

    So a script or a notebook may build or stream without `if __name__ == "__main__":`.
    """

    _one_at_a_time = threading.Lock()

    def _launch(self, process_obj: Any) -> None:
        with self._one_at_a_time:
            whole = spawn.get_preparation_data
            spawn.get_preparation_data = lambda name: {key: value for key, value in whole(name).items() if not key.startswith("init_main")}
            try:
                for _ in range(_PATIENCE):
                    with suppress(ConnectionRefusedError):  # the server was just killed, and isn't known to be gone yet
                        return super()._launch(process_obj)  # type: ignore[misc]
                    self._fds: list[int] = []
                    time.sleep(0.1)
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                spawn.get_preparation_data = whole


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)


class WorkerContext(ForkServerContext):
    """What `multiprocessing.get_context("forkserver")` gives, but its processes run nothing of the caller's main script."""

    Process = _Process
