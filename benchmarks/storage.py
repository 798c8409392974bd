"""Bytes on disk of six stages over pictures that only add small columns or drop rows, against the pictures' own bytes.

python benchmarks/storage.py            2,000 pictures of 50 kB
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import _rooms  # noqa: F401
import numpy as np
from PIL import Image

RECIPE = """name: pictures
seed: 1
stages:
  raw: {op: ingest.image_folder, path: pictures}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
  sound: {op: filter.decodable, from: split}
  clean: {op: filter.exact_duplicates, from: sound}
  hashed: {op: score.perceptual_hash, from: clean}
  kept: {op: prune.random, from: hashed.train, keep: 90%, balance: label}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=288, help="a noisy JPEG of this side has about 50 kB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_pictures(folder / "pictures", args.pictures, args.side)
        (folder / "recipe.yaml").write_text(RECIPE)
        from flows.build import build_recipe

        build_recipe(str(folder / "recipe.yaml"), folder / "store")
        store = sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file())
        copies = sum(file.stat().st_size for file in (folder / "store").glob("stages/*.lance/data/*"))
        print(f"{'what':<44}{'bytes':>16}{'of the pictures':>18}")
        for name, size in (("the pictures", source), ("tables of six stages", copies), ("the whole store, records and log too", store)):
            print(f"{name:<44}{size:>16,}{size / source:>17.3f}x")
        print(f"free on the disk: {shutil.disk_usage(scratch).free:,} bytes; pictures: {args.pictures:,} of {source // args.pictures:,} bytes")


def write_pictures(folder: Path, count: int, side: int) -> int:
    """Write JPEGs of noise over a gradient in ten class folders; returns their bytes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class-{number % 10}" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 160, side)[:, None, None] + np.zeros((side, side, 3))
        Image.fromarray((ramp + rng.integers(0, 96, (side, side, 3))).astype(np.uint8)).save(target, quality=91)
    return sum(os.path.getsize(file) for file in folder.rglob("*.jpg"))


if __name__ == "__main__":
    main()
