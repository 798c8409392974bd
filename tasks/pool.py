"""The pool: worker processes that run partitions and units, for all stages of a build."""

import ctypes
import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from stillroom.errors import StageError, UnreachableError
from stillroom.workers import WorkerContext, start_server

__all__ = ["WORKER_ENVIRONMENT", "Job", "Pool", "Progress", "portable", "report_progress", "report_to"]

PRELOAD = ["torch", "lance", "polars", "tasks.ending"]
# One thread a process, and no module of ours from the working directory.
WORKER_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Batches are made in one thread and freed in another: with an arena a thread, and in Arrow's own pool, they stay with
    # the process, in a choice among millions of rows half a gigabyte.
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "LANCE_LOG": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # The second is said by the tracker of semaphores after a build was killed: it clears them away, and that is all.
    "PYTHONWARNINGS": "ignore:lance is not fork-safe,ignore:resource_tracker",
}
Progress = Callable[[str, str, float, float], None]
_progress: Any = None


class Job(NamedTuple):
    """A function of a worker's modules, its arguments, and how many cores it takes."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    threads: int = 1


class Pool:
    """Worker processes from a fork server that has loaded torch and Lance once.

    Lance isn't fork-safe and spawned workers import torch for seconds each; the fork server has
    neither fault. A worker that dies is replaced and its job retried; a worker ends when its parent does.
    Elsewhere than on this machine, `_open`, `_result` and `close` are what differs: `tasks.ray_pool`.

    Args:
        workers: how many cores jobs may take at once, and how many processes there are at most.
        on_progress: called as (key, unit, done, total) with what workers report.
    """

    _if_lost = "is there enough memory? try `--workers 1`"

    def __init__(self, workers: int, on_progress: Progress | None = None) -> None:
        self.workers = max(1, workers)
        self._free, self._changed = self.workers, threading.Condition()
        self.stopped = False
        self._open(on_progress)

    def _open(self, on_progress: Progress | None) -> None:
        """Start the workers, and what hands their progress on."""
        self._context = WorkerContext()
        self._context.set_forkserver_preload(PRELOAD)
        # A pipe without a lock: a worker that is killed while it holds one would stop all others. What is
        # sent is far below PIPE_BUF (4,096 bytes), so the system keeps the messages whole.
        self._messages, self._reports = self._context.Pipe(duplex=False)
        self._executor = self._start()
        self._listener = threading.Thread(target=self._listen, args=(on_progress,), daemon=True)
        self._listener.start()

    def run(self, jobs: Sequence[Job], *, stage: str, retries: int = 2, on_result: Callable[[int, Any], None] | None = None) -> list[Any]:
        """Run jobs, as many at a time as cores allow, and return their results in order.

        The first exception of a job is raised once the jobs already running have ended.

        Raises:
            StageError: a worker was lost more than `retries` times over the same job.
            UnreachableError: the store was, more than `retries` times over the same job.
        """
        results: list[Any] = [None] * len(jobs)
        failures: list[BaseException] = []
        threads = []
        for index, job in enumerate(jobs):
            cost = min(job.threads, self.workers)
            self._acquire(cost)
            if failures:
                self._release(cost)
                break
            thread = threading.Thread(target=self._attempt, args=(index, job, cost, stage, retries, results, failures, on_result))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    def close(self) -> None:
        """End the workers, each after the job that it is at."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._reports.send(None)
        self._listener.join()

    def stop(self) -> None:
        """End the workers now, whatever they are at; whoever waits for them gets an error."""
        self.stopped = True
        self._kill()
        self.close()

    def _kill(self) -> None:
        for process in list((self._executor._processes or {}).values()):  # `kill_workers` is there from Python 3.14 on
            process.kill()

    def _attempt(
        self,
        index: int,
        job: Job,
        cost: int,
        stage: str,
        retries: int,
        results: list[Any],
        failures: list[BaseException],
        on_result: Callable[[int, Any], None] | None,
    ) -> None:
        try:
            for attempt in range(retries + 1):
                try:
                    results[index] = self._result(job)
                    break
                except BrokenExecutor:
                    if self.stopped:
                        raise StageError(stage, "the build was stopped") from None
                    if attempt == retries:
                        raise StageError(stage, f"a worker process died {retries + 1} times over the same work", self._if_lost) from None
                except UnreachableError:
                    if self.stopped or attempt == retries:
                        raise
            if on_result:
                on_result(index, results[index])
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)
        finally:
            self._release(cost)

    def _result(self, job: Job) -> Any:
        """Have a worker do a job; BrokenExecutor if it was lost over it."""
        executor = self._executor
        try:
            future: Future[Any] = executor.submit(_portable, job.fn, *job.args)
            return future.result()
        except BrokenProcessPool:
            self._replace(executor)
            raise

    def _acquire(self, cost: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= cost)
            self._free -= cost

    def _release(self, cost: int) -> None:
        with self._changed:
            self._free += cost
            self._changed.notify_all()

    def _start(self) -> ProcessPoolExecutor:
        start_server(WORKER_ENVIRONMENT)  # again after one that was killed
        return ProcessPoolExecutor(self.workers, mp_context=self._context, initializer=_begin, initargs=(self._reports, dict(os.environ)))

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._changed:
            if self._executor is broken:
                self._executor = self._start()

    def _listen(self, on_progress: Progress | None) -> None:
        while (message := self._messages.recv()) is not None:
            # Progress is a courtesy. If this thread ended, the pipe would fill and every worker wait.
            with suppress(Exception):
                if on_progress:
                    on_progress(*message)


def report_progress(key: str, unit: str, done: float, total: float) -> None:
    """In a worker: tell the parent how far a unit is."""
    if _progress is not None:
        _progress.send((key, unit, done, total))


def report_to(channel: Any) -> None:
    """In a worker: where `report_progress` sends its messages from now on."""
    global _progress
    _progress = channel


def portable(error: BaseException) -> Exception:
    """The error, or a RuntimeError with its text if a parent couldn't take it in."""
    return error if isinstance(error, Exception) and _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _portable(fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn` in a worker; an exception that the parent couldn't take in comes out as a RuntimeError with its text.

    One that doesn't unpickle would break the pool there, and SystemExit would end the parent's thread in silence.
    """
    # Ctrl-C reaches every process of the terminal: one at work stops, one that waits stays silent.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return fn(*args)
    except BaseException as error:
        if (told := portable(error)) is error:
            raise
        raise told from error
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _give_memory_back()


def _give_memory_back() -> None:
    """Return what a job freed to the system, which glibc else keeps for a next one; elsewhere there is no such call."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _begin(reports: Any, environment: dict[str, str]) -> None:
    # The fork server keeps the environment in which it once started; an endpoint may have been set since.
    os.environ.update({name: value for name, value in environment.items() if name not in WORKER_ENVIRONMENT})
    report_to(reports)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_with(parent.sentinel)


def _end_with(sentinel: int) -> None:
    """End this process when its parent has ended, and so closed the other end of a pipe."""
    with suppress(OSError):
        # The system then sends SIGIO, which kills: unlike the thread's turn, that comes too while C code holds the interpreter for minutes.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_wait_for_end, args=(sentinel,), daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
