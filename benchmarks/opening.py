"""Opening a pinned snapshot and reading its first row, against LanceDB, Hugging Face datasets and a Parquet dataset of the same rows.

python benchmarks/opening.py [--pictures 2000] [--runs 5]

Each reading is a process of its own, with files in the page cache. stillroom checks the manifest's checksum and the sizes of all files, the
others check nothing; `datasets` and Parquet have no versions, so there the pin is a folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from _others import QUIET, machine, show, write_pictures

RECIPE = """name: open
seed: 1
stages:
  raw: {op: ingest.image_folder, path: pictures}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
publish:
  splits: {train: split.train, validation: split.validation, test: split.test}
"""
# What is imported, how the snapshot is opened, how its first row is read.
WAYS = {
    "stillroom.open('open@1')": (
        "import stillroom; stillroom.open",
        "opened = stillroom.open('open@1', 'store')",
        "row = next(opened.arrow('train', batch_size=1))",
    ),
    "lancedb: open_table, checkout('v1')": (
        "import lancedb",
        "opened = lancedb.connect('store').open_table('open'); opened.checkout('v1')",
        "row = opened.to_lance().take([0])",
    ),
    "lance.dataset(…, version='v1')": (
        "import lance",
        "opened = lance.dataset('store/open.lance', version='v1')",
        "row = opened.take([0])",
    ),
    "datasets.load_from_disk": (
        "from datasets import load_from_disk; from PIL import Image",
        "opened = load_from_disk('hf')['train']",
        "row = opened[0]",
    ),
    "pyarrow.dataset of Parquet": (
        "import pyarrow.dataset",
        "opened = pyarrow.dataset.dataset('parquet')",
        "row = opened.head(1, batch_size=1, batch_readahead=0, fragment_readahead=0)",
    ),
}
READER = """import json, os, sys, time
if "lance" in sys.argv[1]: os.environ["LANCE_LOG"] = "error"
times = []
for step in sys.argv[1:]:
    begun = time.perf_counter()
    exec(step)
    times.append(time.perf_counter() - begun)
begun = time.perf_counter()
for step in sys.argv[2:]:
    exec(step)
print(json.dumps([*times, time.perf_counter() - begun, time.process_time()]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write(folder, args.pictures)
        times: dict[str, list[list[float]]] = {name: [] for name in WAYS}
        for _ in range(args.runs + 1):
            for name, steps in WAYS.items():
                ran = subprocess.run(
                    [sys.executable, "-c", READER, *steps], cwd=folder, env={**os.environ, **QUIET}, capture_output=True, text=True, check=True
                )
                times[name].append(json.loads(ran.stdout.splitlines()[-1]))
    found = {name: [median(column) for column in zip(*lines[1:], strict=True)] for name, lines in times.items()}  # the first fills the page cache
    ours = found["stillroom.open('open@1')"]
    lines = [
        [name, *(f"{1000 * value:.1f}" for value in (*line[:4], sum(line[:3]), line[4])), f"{sum(line[:3]) / sum(ours[:3]):.2f}x", f"{line[3] / ours[3]:.2f}x"]
        for name, line in found.items()
    ]
    show(["ms", "import", "open", "first row", "both again", "in all", "CPU", "in all / ours", "again / ours"], lines)
    print(f"medians of {args.runs} processes each, {args.pictures:,} pictures of 50 kB; {machine()}")


def _write(folder: Path, count: int) -> None:
    """The same rows as a snapshot, as a folder of `datasets`, and as Parquet."""
    from flows.build import build_recipe
    from stillroom.snapshots import open as open_snapshot
    from storage.export import export_snapshot

    write_pictures(folder / "pictures", count, 288)
    (folder / "recipe.yaml").write_text(RECIPE)
    build_recipe(str(folder / "recipe.yaml"), folder / "store")
    opened = open_snapshot("open@1", folder / "store")
    export_snapshot(opened, folder / "hf", "hf")
    export_snapshot(opened, folder / "parquet", "parquet")


if __name__ == "__main__":
    main()
