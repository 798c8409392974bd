"""Threads that work ahead: in order, no further than they are told, and gone with whoever they worked for."""

import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import partial

import pytest

from stillroom.ahead import cores, made_ahead, made_together


def counted(begun: list[int], count: int = 20, closed: list[bool] | None = None) -> Generator[int, None, None]:
    try:
        for number in range(count):
            begun.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append(True)


def test_items_come_in_order_and_one_is_made_ahead():
    begun: list[int] = []
    items = made_ahead(counted(begun))
    assert next(items) == 0
    time.sleep(0.2)
    assert begun == [0, 1]
    assert list(items) == list(range(1, 20))


def test_jobs_end_in_any_order_and_come_in_theirs():
    at_once, most, lock = [0], [0], threading.Lock()

    def job(number: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.02 * (number % 3))
        with lock:
            at_once[0] -= 1
        return number

    begun: list[int] = []
    assert list(made_together((partial(job, number) for number in counted(begun)), 3)) == list(range(20))
    assert most[0] == 3


def test_an_error_comes_at_its_place_and_what_was_asked_for_is_closed():
    closed: list[bool] = []
    made = made_together((partial(divmod, 1, 3 - number) for number in counted([], closed=closed)), 2)
    assert [next(made) for _ in range(3)] == [(0, 1), (0, 1), (1, 0)]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert closed == [True]


@pytest.mark.parametrize("made", ["made_ahead(n for n in range(9))", "made_together(((lambda: 1) for _ in range(9)), 2)"])
def test_what_the_end_of_a_program_finds_open_says_nothing(made):
    code = f"from stillroom.ahead import *\nopened = {made}\nnext(opened)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_ranks_on_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert cores() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    assert cores() == 8
