"""What the comparisons share: the other tools in a virtual environment of their own, timing of commands, a table of ratios, pictures."""

import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import _rooms  # noqa: F401
import numpy as np
from PIL import Image

__all__ = ["Cost", "folder_bytes", "machine", "medians", "show", "timed", "tools", "write_pictures"]

REQUIREMENTS = Path(__file__).parent / "against" / "requirements.txt"
# Nobody is told that a benchmark ran, and no model hub is asked for anything.
QUIET = {
    "DVC_NO_ANALYTICS": "1", "KEDRO_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}  # fmt: skip


class Cost(NamedTuple):
    """Seconds that something took: on the clock, and of CPU, its processes included."""

    wall: float
    cpu: float


def tools() -> Path:
    """The folder with `python`, `dvc` and `kedro` of the pinned versions; installed the first time, which takes a minute or two."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "stillroom-against" / hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    if not (folder / "ready").exists():
        print(f"installing {', '.join(REQUIREMENTS.read_text().split())} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-qq", "-r", REQUIREMENTS], check=True)
        (folder / "ready").touch()
    return folder / "bin"


def timed(command: Sequence[str | Path], folder: Path, **env: str) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; its output is in the text.
    """
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(command, cwd=folder, env={**os.environ, **QUIET, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {ran.returncode}:\n{ran.stdout[-3000:]}")
    return Cost(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def medians(costs: Sequence[Cost]) -> Cost:
    """The median of each, on its own."""
    return Cost(median(cost.wall for cost in costs), median(cost.cpu for cost in costs))


def show(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, its first column to the left and the others to the right."""
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    for line in [head, *lines]:
        print("  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(line, widths, strict=True))))


def machine() -> str:
    """What a figure depends on besides the code."""
    return f"{len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}"


def folder_bytes(*folders: Path) -> int:
    """Bytes of all files; one that has several names (hard links) counts once."""
    files = [file.stat() for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in files}.values())


def write_pictures(folder: Path, count: int, side: int) -> int:
    """Write JPEGs of noise over a gradient in ten class folders, of which a side of 288 px gives 50 kB each; returns their bytes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class-{number % 10}" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 160, side)[:, None, None] + np.zeros((side, side, 3))
        Image.fromarray((ramp + rng.integers(0, 96, (side, side, 3))).astype(np.uint8)).save(target, quality=91)
    return folder_bytes(folder)
