"""Ray as the pool: a build's jobs run on the nodes of a cluster, over a store that all of them reach. The extra `ray`.

The driver, where `stillroom build` runs, plans, commits and publishes; a job is a Ray task that reads
and writes the store itself, so that only names, counts and exceptions travel.
"""

import logging
import os
import socket
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stillroom.errors import InputError, StageError
from stillroom.format import FORMAT_KEY
from stillroom.stores import Store
from tasks.environment import environment
from tasks.pool import WORKER_ENVIRONMENT, Job, Pool, Progress, portable, report_to
from tasks.specs import StageSpec

__all__ = ["RayPool"]

PROGRESS_EVERY_S = 0.5
CONNECT_S = 10
IS_IT_UP = "`ray status` on the head node says whether it is up"
OBJECT_STORE_BYTES = 128 << 20  # rows don't travel; Ray's own default is a third of the memory


class RayPool(Pool):
    """Runs jobs as Ray tasks, spread over the nodes; a job whose worker or node is lost runs again, elsewhere.

    Args:
        address: `ray://HOST:10001` (from outside), `HOST:6379` or `auto` (on a node of the cluster), or
            `local`: a cluster of this machine alone, for as long as the build runs.
        workers: how many cores jobs may ask for at once. None: twice what the cluster has, so that a node
            finds its next job waiting, and an autoscaler sees what is missing.
        on_progress: called as (key, unit, done, total) with what workers report.
        store: the build's store; a node that sees another one there, or none, is refused.

    Raises:
        InputError: Ray isn't installed, or no cluster answers there.
    """

    _if_lost = "is there enough memory on a node? `ray status` and the logs below /tmp/ray say more"

    def __init__(self, address: str, workers: int | None = None, on_progress: Progress | None = None, *, store: Store | None = None) -> None:
        self._terms = _Terms.of(store)
        _connection.open(address)
        self._running: set[Any] = set()
        self._ended = threading.Event()
        super().__init__(workers or 2 * int(sum(node.get("CPU", 0) for node in _nodes())), on_progress)

    def _open(self, on_progress: Progress | None) -> None:
        import ray

        self._task = ray.remote(_work)
        self._board: Any = None
        self._follower: threading.Thread | None = None
        if on_progress:
            # On the head node, without which there is no cluster anyway.
            self._board = ray.remote(_Board).options(num_cpus=0, resources={"node:__internal_head__": 0.001}).remote()
            self._follower = threading.Thread(target=self._follow, args=(on_progress,), daemon=True)
            self._follower.start()

    def close(self) -> None:
        """End what still runs, and this process's connection if no other build uses it."""
        import ray

        self.stopped = True
        self._kill()
        end_s = time.monotonic() + CONNECT_S
        while self._running and time.monotonic() < end_s:
            time.sleep(0.02)  # whoever waits for a job hears of its end before the connection does
        self._ended.set()
        if self._follower:
            self._follower.join()
            ray.kill(self._board)
        _connection.close()

    def _kill(self) -> None:
        import ray

        for ref in list(self._running):
            with suppress(Exception):
                ray.cancel(ref, force=True)

    def _result(self, job: Job) -> Any:
        import ray
        from ray import exceptions as ends

        if self.stopped:
            raise BrokenExecutor("the pool is closed")
        ref = self._task.options(**_options(job)).remote(job.fn, job.args, self._board, self._terms)
        self._running.add(ref)
        if self.stopped:  # meanwhile
            self._kill()
        try:
            returned, value = ray.get(ref)
        except _lost() as error:
            raise BrokenExecutor(str(error)) from error
        except (ends.RayTaskError, ends.RuntimeEnvSetupError) as error:  # a job's own exception is returned, so this is none
            raise InputError("cluster", f"a node can't run stillroom: {_last_line(error)}", "install the same packages on every node") from error
        finally:
            self._running.discard(ref)
        if returned:
            return value
        raised, trace = value
        raise raised from _OnNode(trace)

    def _follow(self, on_progress: Progress) -> None:
        import ray

        while not self._ended.wait(PROGRESS_EVERY_S):
            with suppress(Exception):  # progress is a courtesy
                for (key, unit), (done, total) in ray.get(self._board.take.remote()).items():
                    on_progress(key, unit, done, total)


class _Connection:
    """This process's one connection to a cluster, which the pools of builds that run at once share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address, self._pools, self._ours = "", 0, False

    def open(self, address: str) -> None:
        """Connect, unless this process is connected."""
        try:
            import ray
        except ImportError:
            raise InputError(f"cluster '{address}'", "Ray isn't installed", "pip install 'stillroom[ray]'") from None
        _knock(address)
        with self._lock:
            if self._pools and address != self._address:
                raise InputError(f"cluster '{address}'", f"this process is building on '{self._address}'", "build in another process")
            if not self._pools:
                self._address, self._ours = address, not ray.is_initialized()
                if self._ours:
                    _init(address)
            self._pools += 1

    def close(self) -> None:
        """Disconnect after the last pool, if the connection was made for pools."""
        import ray

        with self._lock:
            self._pools -= 1
            if not self._pools and self._ours:
                ray.shutdown()


_connection = _Connection()


def _knock(address: str) -> None:
    """Refuse an address where nothing listens; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(f"cluster '{address}'", f"nothing answers: {error}", IS_IT_UP) from None


def _init(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local: dict[str, Any] = {}
    if address == "local":
        local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "num_cpus": len(os.sched_getaffinity(0))}
    # Without a working directory of their own, workers would get the driver's at the head of sys.path, where somebody's `tasks.py` may lie.
    with tempfile.TemporaryDirectory(prefix="stillroom-") as empty, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Lance isn't fork-safe: what is forked for `local` runs another program at once; and Ray's own
        try:
            ray.init(address, runtime_env={"working_dir": empty}, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, RuntimeError, ValueError) as error:
            ray.shutdown()
            if address == "auto" and isinstance(error, ConnectionError):
                raise InputError("cluster 'auto'", "none is running on this machine", "`--cluster HOST:PORT` names another; so does RAY_ADDRESS") from None
            raise InputError(
                f"cluster '{address}'", _last_line(error), f"{IS_IT_UP}; a cluster that asks for a token wants RAY_AUTH_MODE=token here too"
            ) from error


def _nodes() -> list[dict[str, float]]:
    """What each living node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _options(job: Job) -> dict[str, Any]:
    """How Ray runs a job: whom it asks for what."""
    spec = next((value for value in job.args if isinstance(value, StageSpec)), None)
    gpus = 1 if spec and spec.device.startswith("cuda") else 0
    cores = 1
    if job.threads > 1 or gpus:
        nodes = _nodes()
        # A task that asks for more cores than any node has would wait for ever.
        cores = max(1, min(job.threads, int(max((node.get("CPU", 0) for node in nodes), default=1))))
        if gpus and spec and not any(node.get("GPU", 0) for node in nodes):
            raise StageError(spec.stage, "wants a GPU (run.device: cuda), and no node of the cluster has one", "leave run.device out")
    return {
        "name": f"{spec.stage}: {job.fn.__name__}" if spec else job.fn.__name__,
        "num_cpus": cores,
        "num_gpus": gpus,
        "max_retries": 0,  # who tries again, and how often, is for `run` to say
        "scheduling_strategy": "SPREAD",
        # Ray hides no GPU from a task that asked for none, unless told to: what a job computes must not depend on its node.
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}},
    }


def _lost() -> tuple[type[Exception], ...]:
    """What Ray raises where a worker, its node or its result is gone, by itself or by `ray.cancel`."""
    from ray import exceptions as ends

    return (
        ends.WorkerCrashedError,
        ends.NodeDiedError,
        ends.OutOfMemoryError,
        ends.ObjectLostError,
        ends.LocalRayletDiedError,
        ends.TaskCancelledError,
    )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


# On a node


def _work(fn: Callable[..., Any], args: tuple[Any, ...], board: Any, terms: "_Terms") -> tuple[bool, Any]:
    """Do a job: (True, its result), or (False, (its exception, the traceback)).

    Ray would give the driver an exception of a class made on the spot, whose `args` aren't ours.
    """
    try:
        terms.check()
        report_to(_Sender(board) if board else None)
        return True, fn(*args)
    except BaseException as error:
        return False, (portable(error), traceback.format_exc())


@dataclass(frozen=True)
class _Terms:
    """What a node must have in common with the driver for the same digests: packages, kind of machine, store."""

    versions: tuple[tuple[str, str], ...]
    store: str = ""
    store_id: str = ""

    @classmethod
    def of(cls, store: Store | None) -> "_Terms":
        """Those of this process."""
        versions = tuple(sorted(_versions().items()))
        found = store.read_json(FORMAT_KEY) if store else None
        return cls(versions, store.uri, found["id"]) if store and found else cls(versions)

    def check(self) -> None:
        """Once a process: refuse to work where they don't hold."""
        if self in _agreed:
            return
        import ray

        node = f"node {ray.util.get_node_ip_address()}"
        here = _versions()
        for name, version in self.versions:
            if here.get(name) != version:
                raise InputError(
                    node, f"has {name} {here.get(name, 'not at all')}, and the build runs with {version}", "install the same packages on every node"
                )
        if self.store:
            found = Store(self.store).read_json(FORMAT_KEY)
            if found is None or found["id"] != self.store_id:
                problem = "is not there" if found is None else "is another one"
                raise InputError(f"store {self.store}", f"{problem} on {node}", "a cluster needs an object store, or a folder that all nodes share")
        _agreed.add(self)


_agreed: set[_Terms] = set()


def _versions() -> dict[str, str]:
    found = environment()
    return {"python": found["python"], "machine": found["machine"], **found["packages"]}


class _Sender:
    """Takes a job's progress messages to the board, some a second: `tasks.pool.report_to`."""

    def __init__(self, board: Any) -> None:
        self._board, self._last_s = board, float("-inf")

    def send(self, message: tuple[str, str, float, float]) -> None:
        """Send a message, if it is the last of its unit or the one before is old enough."""
        now_s = time.monotonic()
        if message[2] >= message[3] or now_s - self._last_s >= PROGRESS_EVERY_S:
            self._last_s = now_s
            self._board.tell.remote(*message)


class _Board:
    """An actor: the latest of what each unit reported, until the driver takes it."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], tuple[float, float]] = {}

    def tell(self, key: str, unit: str, done: float, total: float) -> None:
        """Note how far a unit is."""
        self._latest[key, unit] = (done, total)

    def take(self) -> dict[tuple[str, str], tuple[float, float]]:
        """What was noted since the last time."""
        latest, self._latest = self._latest, {}
        return latest


class _OnNode(Exception):
    """The traceback of a job's exception, as its cause."""
