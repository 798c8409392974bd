"""What a trainer waits for: `snapshot.stream` beside LanceDB's own stream, litdata, MosaicML Streaming, WebDataset, datasets and plain files.

python benchmarks/loader.py [--small 30000] [--jpegs 3000] [--rounds 2] [--keep FOLDER]     (`make data` first)

The same pictures for all: Fashion-MNIST as PNGs of 28 x 28, and JPEGs of 50 kB, 288 x 288; shuffled batches of uint8, 0, 1 and
2 worker processes. A count of 0 leaves a kind out. The limit is a loop that decodes bytes which lie in memory, in one process, with nothing around it.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from _others import QUIET, machine, show, write_pictures

from flows.build import build_recipe
from stillroom.images import encode_png

RUNNER = Path(__file__).parent / "against" / "loaders.py"
REQUIREMENTS = RUNNER.with_suffix(".txt")
FASHION = Path(__file__).parents[1] / "data" / "fashion_mnist"
RECIPE = """name: pictures
seed: 7
stages:
  raw: {op: ingest.image_folder, path: files}
  split: {op: table.split, from: raw, validation: 0%, test: 0%}
  viewed: {op: reinforce.views, from: split.train, count: 4, policy: [identity, crop, flip]}
publish:
  splits: {train: viewed}
"""
NAMES = {
    "stillroom": "stillroom", "stillroom-decoding": "stillroom, encoded images", "stillroom-views": "stillroom, views replayed",
    "lancedb": "lancedb.streaming", "litdata": "litdata", "mosaic": "MosaicML Streaming", "webdataset": "WebDataset",
    "huggingface": "datasets", "files": "files, torch DataLoader", "limit": "decoding alone",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=int, default=30_000)
    parser.add_argument("--jpegs", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--keep", type=Path, help="pictures in all forms stay here, and a later call with equal counts reads them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = args.keep or Path(scratch)
        print(f"{machine()}; means of {args.rounds} epochs, the tools in turn; rates after the first batch")
        for title, write, count, batch in (("PNGs of 28 x 28", write_fashion, args.small, 256), ("JPEGs of 50 kB", write_jpegs, args.jpegs, 64)):
            if not count:
                continue
            folder = home / f"{title.split()[0].lower()}-{count}"
            prepare(folder, write, count)
            for workers in args.workers:
                print(f"\n{count:,} {title}, batches of {batch}, {workers} workers")
                compare(folder, workers, batch, args.rounds, args.only)


def write_fashion(folder: Path, count: int) -> None:
    """The first images of Fashion-MNIST as PNGs, a folder for each class."""
    pixels_NHW, labels_N = (
        np.frombuffer(gzip.decompress((FASHION / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=at).reshape(-1, *shape)
        for name, at, shape in (("images-idx3", 16, (28, 28)), ("labels-idx1", 8, ()))
    )
    for number in range(count):
        file = folder / f"class-{labels_N[number]}" / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels_NHW[number][:, :, None]))


def write_jpegs(folder: Path, count: int) -> None:
    """JPEGs of 50 kB."""
    write_pictures(folder, count, 288)


def prepare(folder: Path, write: Any, count: int) -> None:
    """The pictures as files, as a snapshot, and in each tool's own form; what is there stays."""
    if (folder / "ready").exists():
        return
    write(folder / "files", count)
    (folder / "pictures.yaml").write_text(RECIPE)
    build_recipe(folder / "pictures.yaml", folder / "stillroom")
    for tool in NAMES:
        run(tool, folder, "write")
    (folder / "ready").touch()


def run(tool: str, folder: Path, *words: object) -> str:
    """What a tool's side of the work prints.

    Raises:
        RuntimeError: it failed; its words are in the text.
    """
    ran = subprocess.run([sys.executable, RUNNER, tool, folder, *map(str, words)], env=environment(), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{tool} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
    return ran.stdout


def others() -> str:
    """The folder with the other tools, beside the torch that is here; installed the first time."""
    requirements = RUNNER.with_suffix(".txt")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "stillroom-against" / hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    if not (folder / "ready").exists():
        print(f"installing {', '.join(requirements.read_text().split())} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", folder, "-r", requirements], check=True)
        (folder / "ready").touch()
    return str(folder)


def environment() -> dict[str, str]:
    """In which each tool runs: nobody's telemetry, one thread a process."""
    path = os.pathsep.join([str(RUNNER.parents[2]), others()])
    return {**os.environ, **QUIET, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "DISABLE_LITDATA_TELEMETRY": "1"}


def compare(folder: Path, workers: int, batch: int, rounds: int, tools: list[str]) -> None:
    """Print a table of all tools."""
    chosen = [tool for tool in tools if tool != "limit" or workers == 0]
    measured: dict[str, list[dict[str, Any]]] = {tool: [] for tool in chosen}
    for _ in range(rounds):
        for tool in chosen:
            measured[tool].append(json.loads(run(tool, folder, workers, batch).splitlines()[-1]))
    found = {tool: {key: mean([one[key] for one in runs]) for key in runs[0]} for tool, runs in measured.items()}
    rivals = [tool for tool in chosen if not tool.startswith("stillroom") and tool != "limit"]
    best = max((found[tool]["per_s"] for tool in rivals), default=0.0)
    head = ["loader", "samples/s", "of the best other", "samples/CPU s", "first batch s", "resume s", "MB at 1/4", "MB at the end"]
    show(head, [line(NAMES[tool], figures, best) for tool, figures in found.items()])


def mean(values: list[Any]) -> Any:
    """The mean, of each figure where there are several; None where there are none."""
    if values[0] is None:
        return None
    return [fmean(each) for each in zip(*values, strict=True)] if isinstance(values[0], list) else fmean(values)


def line(name: str, figures: dict[str, Any], best: float) -> list[str]:
    """One tool's figures."""
    resume = "none" if figures["resume_s"] is None else f"{figures['resume_s']:.2f}"
    ratio = f"{figures['per_s'] / best:.2f}" if best else ""
    return [
        name,
        f"{figures['per_s']:,.0f}",
        ratio,
        f"{figures['per_cpu_s']:,.0f}",
        f"{figures['first_s']:.2f}",
        resume,
        *(f"{held:,.0f}" for held in figures["held_mb"]),
    ]


if __name__ == "__main__":
    main()
