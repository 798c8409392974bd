"""A folder of 60,000 images grows by 1 %: the next build against one from nothing, a night without news, and whether both come to the same.

python benchmarks/incremental.py [--images 60000]
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from _others import Cost, machine, show, timed

from stillroom.images import encode_png
from stillroom.snapshots import open as open_snapshot

RECIPE = """name: growing
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 5%, test: 5%}
  sound: {op: filter.decodable, from: split}
  hashed: {op: score.perceptual_hash, from: sound}
publish:
  splits: {train: hashed.train, validation: hashed.validation, test: hashed.test}
"""
CLASSES, SIDE_PX = 10, 64
# A process of its own, as a night is.
BUILD = """
import json, sys, time
from flows.build import build_recipe
begun = time.perf_counter()
result = build_recipe(*sys.argv[1:3]).as_dict()
json.dump({**result, "seconds": time.perf_counter() - begun}, open(sys.argv[3], "w"))
"""


def main() -> None:
    """Build, grow, build, and build from nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=60_000)
    args = parser.parse_args()
    # Starting it is no part of a build; in a process of its own, since our children are waited for.
    subprocess.run([sys.executable, "-c", "from flows.server import ensure_server; ensure_server()"], check=True)
    # Workers outlive the process that started them by a moment: they become our children then, and their CPU counts (Linux's PR_SET_CHILD_SUBREAPER).
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "growing.yaml").write_text(RECIPE)
        _paint(folder, 0, args.images)
        lines = [_build(folder, "the first night", "store")]
        # Files that come later sort last in their class, as numbered or dated ones do.
        _paint(folder, args.images, args.images + args.images // 100)
        lines.append(_build(folder, "the next night, 1 % new", "store"))
        lines.append(_build(folder, "a night without news", "store"))
        lines.append(_build(folder, "the grown folder from nothing", "anew"))
    show(["build of", "images", "wall s", "CPU s", "load before", "snapshot", "digest"], [line for line, _, _ in lines])
    (_, grown, digest), (_, _, quiet), (_, anew, whole) = lines[1:]
    print(f"\nthe next night took {grown.wall / anew.wall:.2f} of the seconds and {grown.cpu / anew.cpu:.2f} of the CPU of a build from nothing")
    print(f"digests {'equal' if digest == quiet == whole else 'DIFFER'}; {machine()}")


def _paint(folder: Path, start: int, stop: int) -> None:
    """Images that no compressor makes small, a few kB each, over ten class folders."""
    for number in range(start, stop):
        path = folder / "photos" / str(number % CLASSES) / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.random.default_rng(number).integers(0, 255, (SIDE_PX, SIDE_PX, 1), np.uint8)))


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _build(folder: Path, what: str, store: str) -> tuple[list[str], Cost, str]:
    """A line of the table, the cost and the digest; what each stage took goes to stderr."""
    load = os.getloadavg()[0]
    before = _children_s()
    wall, _ = timed([sys.executable, "-c", BUILD, folder / "growing.yaml", folder / store, folder / "result.json"], folder)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    cost = Cost(wall, _children_s() - before)
    result = json.loads((folder / "result.json").read_text())
    stages = ", ".join(f"{line['name']} {line['seconds']:.1f} s ({line['worked']:,} built, {line['taken']:,} taken over)" for line in result["stages"])
    print(f"{what}: {result['seconds']:.1f} s without loading: {stages}", file=sys.stderr)
    manifest = open_snapshot(result["snapshot"], folder / store).manifest
    line = [what, f"{manifest['rows']:,}", f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{load:.1f}", result["snapshot"], manifest["digest"][:12]]
    return line, cost, manifest["digest"]


if __name__ == "__main__":
    main()
