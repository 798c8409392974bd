"""The pool's processes end with the build: after kill -9, also in C code that holds the interpreter; at once when the build is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.errors import StageError
from tasks.pool import Job, Pool

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

# One worker computes a power for minutes without giving the interpreter up, the other one sleeps. There is no
# `if __name__ == "__main__"`: a worker doesn't run the script again.
BUSY = """
import os, time
from tasks.pool import Job, Pool
pool = Pool(2)
print(*(pid for pid in pool.run([Job(os.getpid, ()), Job(os.getpid, ())], stage="first")), flush=True)
pool.run([Job(pow, (3, 1 << 4_000_000, (1 << 400_000) + 1)), Job(time.sleep, (600,))], stage="busy")
"""


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what: Callable[[], bool], seconds: float) -> float:
    """Seconds until something is so; fails after the given time."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_workers_end_within_two_seconds_of_a_kill_whatever_they_are_at(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(BUSY)
    build = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert build.stdout is not None
    build.stdout.readline()
    (server,) = [pid for pid in children(build.pid) if children(pid)]
    workers = children(server)
    before = {pid: cpu_s(pid) for pid in workers}
    wait_for(lambda: max(cpu_s(pid) - before[pid] for pid in workers) > 0.5, 30)
    build.kill()
    build.wait()
    wait_for(lambda: not any(map(is_there, workers)), 2)
    wait_for(lambda: not is_there(server), 20)
    assert build.stderr is not None
    assert build.stderr.read() == ""


def test_a_pool_that_is_stopped_waits_for_no_job():
    pool, raised = Pool(1), []

    def run() -> None:
        try:
            pool.run([Job(time.sleep, (600,))], stage="long")
        except StageError as error:
            raised.append(str(error))

    pool.run([Job(os.getpid, ())], stage="first")
    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    pool.stop()
    thread.join()
    assert time.monotonic() - began < 5
    assert raised == ["stage 'long': the build was stopped"]


def test_a_fork_server_that_was_killed_is_started_again():
    pool = Pool(1)
    try:
        (server,) = pool.run([Job(os.getppid, ())], stage="first")
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: pool.run([Job(os.getppid, ())], stage="second") not in ([server], [1]), 20)
        (again,) = pool.run([Job(os.getppid, ())], stage="third")
        assert b"PYTHONSAFEPATH=1" in Path(f"/proc/{again}/environ").read_bytes()
    finally:
        pool.stop()
