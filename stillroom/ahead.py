"""Threads that work ahead of whoever takes what they make, and end with him.

He waits for queues and for nothing else. What executors and `threading` lock with is Python code, in which Ctrl-C may come
between taking a lock and knowing of it: then all wait for ever, or it comes out as another error.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

__all__ = ["cores", "made_ahead", "made_together"]

T = TypeVar("T")
_NAME = "stillroom-ahead"
_MOST_THREADS = 8
_END: Any = object()
# What was made, or what was raised instead.
_Outcome = tuple[Any, BaseException | None]


def cores() -> int:
    """How many threads this process may keep busy: the machine's cores that it may use, shared by the ranks on it, up to eight."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def made_ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The same items, one ahead of the caller, made by a thread."""
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[_Outcome] = SimpleQueue()

    def work() -> None:
        while asked.get():
            _make(partial(next, items, _END), made)
        items.close()

    thread = _started(work)
    asked.put(True)
    try:
        while True:
            asked.put(True)
            if (item := _given(made)) is _END:
                return
            yield item
    finally:
        asked.put(False)
        thread.join()


def made_together(jobs: Generator[Callable[[], T], None, None], threads: int) -> Iterator[T]:
    """What jobs make, in their order: so many at a time, and one that waits for a thread."""
    todo: SimpleQueue[tuple[Callable[[], T], SimpleQueue[_Outcome]] | None] = SimpleQueue()
    coming: deque[SimpleQueue[_Outcome]] = deque()
    running: list[Thread] = []

    def work() -> None:
        while (given := todo.get()) is not None:
            job, made = given
            _make(job, made)

    def begin(count: int) -> None:
        for job in islice(jobs, count):
            coming.append(SimpleQueue())
            todo.put((job, coming[-1]))

    try:
        for _ in range(threads):
            running.append(_started(work))
        begin(threads + 1)
        while coming:
            item = _given(coming.popleft())
            begin(1)
            yield item
    finally:
        with suppress(Empty):  # what no thread has begun
            while True:
                todo.get_nowait()
        for _ in running:
            todo.put(None)
        for thread in running:
            thread.join()
        jobs.close()


def _make(job: Callable[[], Any], made: "SimpleQueue[_Outcome]") -> None:
    try:
        made.put((job(), None))
    except BaseException as error:  # handed to the caller
        made.put((_END, error))


def _given(made: "SimpleQueue[_Outcome]") -> Any:
    item, error = made.get()
    if error is not None:
        raise error
    return item


def _started(work: Callable[[], None]) -> Thread:
    # A daemon: what the end of the program finds open is waited for by nobody.
    thread = Thread(target=work, name=_NAME, daemon=True)
    thread.start()
    return thread
