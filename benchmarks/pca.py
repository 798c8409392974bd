"""PCA beside the easiest images and a random choice, at equal numbers of stored images, under hard labels and one recipe.

python benchmarks/pca.py tiles|fashion FOLDER [--budgets 10 50] [--steps 300] [--seeds 3]

FOLDER has what `make data` brings for that set. Each arm's learning rate is tuned on validation; test is looked at once.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import _rooms  # noqa: F401
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import stillroom
from flows.build import build_recipe
from stillroom.operators import Draw, Table, Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.models import load_classifiers
from tasks.nets.samples import load_images, load_labels
from tasks.statistics import mean_interval
from tasks.train.student import StudentParams, student

# S = seeds, N = test images

RAW = {
    "tiles": """
  raw: {op: ingest.parquet, path: FOLDER/tiles.parquet, id: "column:key"}
  split: {op: table.split, from: raw, given: {column: split}}
  pool: {op: table.sample, from: split.train, rows: 100000}""",
    # 12,000 of the 54,000 training images, so that scoring takes half a minute.
    "fashion": """
  raw:
    op: ingest.idx
    images: FOLDER/train-images-idx3-ubyte.gz
    labels: FOLDER/train-labels-idx1-ubyte.gz
    test_images: FOLDER/t10k-images-idx3-ubyte.gz
    test_labels: FOLDER/t10k-labels-idx1-ubyte.gz
  split: {op: table.split, from: raw, given: {column: split}, validation: 10%}
  pool: {op: table.sample, from: split.train, rows: 12000}""",
}
SIDE_PX = {"tiles": 32, "fashion": 28}
# A compressed set by its name: with DOUBLE, cells keep the originals' pixels, and a stored image has four times as many.
SETS = {
    "random": "{op: prune.random, from: scores, images_per_class: IPC}",
    "EL2N, easiest": "{op: prune.by_score, from: scores, score: el2n, order: easiest, images_per_class: IPC}",
    "PCA": "{op: distill.pca, from: scores, images_per_class: IPC}",
    "PCA, cells at full size": "{op: distill.pca, from: scores, images_per_class: IPC, side_px: DOUBLE}",
}
# A student of more epochs than this sees views again.
VIEWS = "{op: reinforce.views, from: NAME, count: 128, policy: [crop, flip], crop_scale: [0.25, 1.0], side_px: SIDE}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=RAW)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for images_per_class in args.budgets:
            tables = compressed(args.data, args.folder.resolve(), images_per_class, Path(folder), store)
            print(f"\n{args.data}, {images_per_class} images per class, {args.steps} steps, {args.seeds} seeds")
            print(f"{'set':<26}{'images':>8}{'bytes':>10}{'rate':>8}{'test accuracy, 95 %':>26}{'points over random':>26}{'over EL2N':>24}")
            correct: dict[str, np.ndarray] = {}
            for name, table in tables.items():
                rate, correct[name] = judged(table, store, args.steps, args.seeds)
                shown = [f"{100 * number:.1f}" for number in mean_interval(correct[name])]
                size = sum(len(image) for image in table.take(range(table.rows), ["image"])["image"].to_pylist())
                line = f"{name:<26}{table.rows:>8}{size:>10}{rate:>8}{'{} [{}, {}]'.format(*shown):>26}"
                for other in list(SETS)[:2]:
                    if other in correct and other != name:
                        over = [f"{100 * number:+.1f}" for number in mean_interval(correct[name].astype(float) - correct[other], -1, 1)]
                        line += f"{'{} [{}, {}]'.format(*over):>26}"
                print(line, flush=True)


def compressed(data: str, source: Path, images_per_class: int, folder: Path, store: Path) -> dict[str, Table]:
    """The table of views of each set, by the set's name."""
    lines = [RAW[data], "  scores: {op: score.dynamics, from: pool, net: cnn, epochs: 5, seeds: 2}"]
    for number, made in enumerate(SETS.values()):
        lines += [f"  set{number}: {made}", f"  views{number}: {VIEWS.replace('NAME', f'set{number}')}"]
    text = "\n".join(["name: pca", "seed: 7", "stages:", *lines, ""])
    for word, value in {"FOLDER": source, "IPC": images_per_class, "DOUBLE": 2 * SIDE_PX[data], "SIDE": SIDE_PX[data]}.items():
        text = text.replace(word, str(value))
    path = folder / "pca.yaml"
    path.write_text(text)
    build_recipe(path, store)
    return {name: stillroom.table(f"pca.views{number}", store=store) for number, name in enumerate(SETS)}


def judged(table: Table, store: Path, steps: int, seeds: int) -> tuple[float, np.ndarray]:
    """The learning rate that suits a set, and which test images its students get right, bool [S, N]."""
    split = stillroom.table("pca.split", store=store)
    tune, test = (MemoryTable(pa.Table.from_batches(of_split(split, name))) for name in ("validation", "test"))
    params = StudentParams(net="cnn", steps=steps, learning_rates=(0.003, 0.01), tune_seeds=1, seeds=seeds, labels="stored")
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(device="cpu", threads=1, scratch=Path(scratch), draw=Draw(7, "train.student"))
        models = MemoryTable(pa.Table.from_batches(student(Unit("arm"), {"samples": table, "tune": tune}, params, work)))
        classifiers = load_classifiers(models, "cpu")
        labels_N, names = load_labels(test)
        pixels_NCSS = load_images(test, Path(scratch), side_px=classifiers[0].config["side_px"], name="test")
        correct = [classifier.with_labels(names).probs(pixels_NCSS, 256).argmax(1) == labels_N for classifier in classifiers]
    return json.loads(models.table["metrics"][0].as_py())["learning_rate"], np.stack(correct)


def of_split(split: Table, name: str) -> Iterator[pa.RecordBatch]:
    """The rows of a split."""
    for batch in split.scan(["image", "label", "split"]):
        yield batch.filter(pc.equal(batch["split"], name))


if __name__ == "__main__":
    main()
