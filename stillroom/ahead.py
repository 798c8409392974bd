"""Threads that work ahead of whoever takes what they make, and end with him."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

__all__ = ["cores", "made_ahead", "made_together"]

T = TypeVar("T")
_NAME = "stillroom-ahead"
_MOST_THREADS = 8
_END: Any = object()


def cores() -> int:
    """How many threads this process may keep busy: the machine's cores that it may use, shared by the ranks on it, up to eight."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def made_ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The same items, one ahead of the caller, made by a thread.

    The caller waits for a queue and nothing else: what `threading` and executors lock with is Python code, where Ctrl-C may come
    between taking a lock and knowing of it, and then all wait for ever. Only a main thread hears Ctrl-C, so this one may lock.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def make() -> None:
        while asked.get():
            try:
                made.put((next(items, _END), None))
            except BaseException as error:  # handed to the caller
                made.put((_END, error))
        items.close()

    # A daemon: an iterator that the end of the program finds open is waited for by nobody.
    thread = Thread(target=make, name=_NAME, daemon=True)
    thread.start()
    asked.put(True)
    try:
        while True:
            asked.put(True)
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        asked.put(False)
        thread.join()


def made_together(jobs: Generator[Callable[[], T], None, None], threads: int) -> Generator[T, None, None]:
    """What jobs make, in their order: so many at a time, and one that waits for a thread."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
    coming = deque(pool.submit(job) for job in islice(jobs, threads + 1))
    try:
        while coming:
            made = coming.popleft().result()
            coming.extend(pool.submit(job) for job in islice(jobs, 1))
            yield made
    finally:
        for future in coming:  # by themselves: what the interpreter's end finds open has no module left to ask for more
            future.cancel()
        pool.shutdown()
        jobs.close()
