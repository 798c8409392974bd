"""How processes end that load tasks.ending: a fork server at once, whatever else as ever."""

import subprocess
import sys

import pytest

ENDING = "import atexit, sys; atexit.register(print, 'taken apart'); import tasks.ending; sys.exit(3)"


@pytest.mark.parametrize(("first", "ends"), [("", ("taken apart\n", 3)), ("import multiprocessing.forkserver; ", ("", 0))], ids=["any", "fork server"])
def test_only_a_fork_server_ends_at_once(first, ends):
    ran = subprocess.run([sys.executable, "-c", first + ENDING], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ends
