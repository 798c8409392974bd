"""A folder of 60,000 images grows by 1 %: the next build against one from nothing, and whether both come to the same.

python benchmarks/incremental.py [--images 60000]
"""

import argparse
import tempfile
import time
from pathlib import Path

import _rooms  # noqa: F401
import numpy as np

from flows.build import build_recipe
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=60_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "growing.yaml").write_text(RECIPE)
        _paint(folder, 0, args.images)
        print(f"{'build of':<34}{'images':>9}{'seconds':>9}{'digest':>16}")
        _build(folder, "the first night", "store")
        # Files that come later sort last in their class, as numbered or dated ones do.
        _paint(folder, args.images, args.images + args.images // 100)
        grown = _build(folder, "the next night, 1 % new", "store")
        anew = _build(folder, "the same from nothing", "anew")
    print(f"\nthe next night took {grown[0] / anew[0]:.2f} of a build from nothing; digests {'equal' if grown[1] == anew[1] else 'DIFFER'}")


def _paint(folder: Path, start: int, stop: int) -> None:
    """Images that no compressor makes small, a few kB each, over ten class folders."""
    for number in range(start, stop):
        path = folder / "photos" / str(number % CLASSES) / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.random.default_rng(number).integers(0, 255, (SIDE_PX, SIDE_PX, 1), np.uint8)))


def _build(folder: Path, what: str, store: str) -> tuple[float, str]:
    begun = time.perf_counter()
    result = build_recipe(folder / "growing.yaml", folder / store)
    seconds = time.perf_counter() - begun
    manifest = open_snapshot(result.snapshot or "", folder / store).manifest
    print(f"{what:<34}{manifest['rows']:>9,}{seconds:>9.1f}{manifest['digest'][:12]:>16}")
    return seconds, manifest["digest"]


if __name__ == "__main__":
    main()
