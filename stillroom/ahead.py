"""Threads that work ahead of whoever takes what they make, and end with him."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
    """The same items, one ahead of the caller, made by a thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=_NAME)
    coming = deque([pool.submit(next, items, _END)])
    try:
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, items, _END))
            yield item
    finally:
        for future in coming:  # by themselves: what the interpreter's end finds open has no module left to ask for more
            future.cancel()
        pool.shutdown()
        items.close()


def made_together(jobs: Generator[Callable[[], T], None, None], threads: int) -> Iterator[T]:
    """What jobs make, in their order: so many at a time, and one that waits for a thread."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
    coming = deque(pool.submit(job) for job in islice(jobs, threads + 1))
    try:
        while coming:
            made = coming.popleft().result()
            coming.extend(pool.submit(job) for job in islice(jobs, 1))
            yield made
    finally:
        for future in coming:
            future.cancel()
        pool.shutdown()
        jobs.close()
