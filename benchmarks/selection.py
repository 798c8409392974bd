"""Which choice trains the best student at which budget? Hard labels, the same student and steps, paired with random choices.

python benchmarks/selection.py [digits|fashion|tiles] [--keep 2% 10% 30%] [--seeds 5] [--steps 200]     (`make data` first)
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _others import machine, show
from scipy import stats

import stillroom
from flows.build import build_recipe
from stillroom.draws import Draw
from stillroom.stored import StoredTable
from tasks.nets.models import Classifier
from tasks.nets.samples import load_images, load_labelled, load_labels
from tasks.nets.training import fit, index_batches, seeded_net

DATA = Path(__file__).parents[1] / "data"
FASHION = {name: f"{DATA}/fashion_mnist/{part}-ubyte.gz" for name, part in (
    ("images", "train-images-idx3"), ("labels", "train-labels-idx1"), ("test_images", "t10k-images-idx3"), ("test_labels", "t10k-labels-idx1"),
)}  # fmt: skip
# Of each data set: where it comes from, how it is split, which of its training rows are the pool, and the sizes at which nets see it and pixels are compared.
SETS = {
    "digits": ("{op: ingest.digits}", "{op: table.split, from: raw, validation: 20%, test: 20%}", "keep: 100%", 8, "side_px: 8, channels: 1"),
    "fashion": (
        "{op: ingest.idx, " + ", ".join(f"{name}: {path}" for name, path in FASHION.items()) + "}",
        "{op: table.split, from: raw, given: {column: split}, validation: 5%}",
        "keep_rows: 6000",
        14,
        "side_px: 14, channels: 1",
    ),
    "tiles": (
        f'{{op: ingest.parquet, path: {DATA}/tiles/tiles.parquet, id: "column:key"}}',
        "{op: table.split, from: raw, given: {column: split}}",
        "keep: 100%",
        16,
        "side_px: 8, channels: 3",
    ),
}
CHOICES = {
    "easiest by EL2N": "{op: prune.by_score, from: grown, score: el2n, order: easiest, BUDGET}",
    "middle by EL2N": "{op: prune.by_score, from: grown, score: el2n, order: middle, BUDGET}",
    "strata by EL2N": "{op: prune.by_score, from: grown, score: el2n, order: strata, cut_off: CUT, BUDGET}",
    "hardest by EL2N": "{op: prune.by_score, from: grown, score: el2n, order: hardest, cut_off: CUT, BUDGET}",
    "CCS on AUM": "{op: prune.ccs, from: grown, score: aum, cut_off: CUT, strata: 10, BUDGET}",
    "D2 on AUM and features": "{op: prune.d2, from: grown, score: aum, cut_off: CUT, BUDGET}",
    "moderate on features": "{op: prune.moderate, from: grown, BUDGET}",
    "herding on features": "{op: prune.herding, from: grown, BUDGET}",
    "k-center on features": "{op: prune.k_center, from: grown, BUDGET}",
    "k-medoids on features": "{op: prune.k_medoids, from: grown, BUDGET}",
    "k-medoids on pixels": "{op: prune.k_medoids, from: grown, vectors: pixels, BUDGET}",
    "facility location": "{op: prune.facility_location, from: grown, BUDGET}",
}
# The less is kept, the more of the hard end has to leave (what the authors of CCS found).
CUT = {"2%": "50%", "10%": "30%", "30%": "10%"}
# Once more, with its weights in the loss.
WEIGHTED = "facility location"
RANDOM = "{op: prune.random, from: grown, seed: SEED, BUDGET}"
RECIPE = """name: selection
seed: 7
stages:
  raw: RAW
  split: SPLIT
  pool: {op: prune.random, from: split.train, balance: proportional, POOL}
  model: {op: train.teacher, from: {samples: pool, check_on: split.validation}, net: cnn, side_px: SIDE, steps: 400, augment: null}
  scores: {op: score.dynamics, from: pool, net: cnn, side_px: SIDE, epochs: 10, seeds: 2}
  looks: {op: score.embed, from: {samples: scores, model: model}, net: model, features: 32}
  pixels: {op: score.embed, from: looks, net: pixels, name: pixels, PIXELS}
  grown: {op: score.gradients, from: {samples: pixels, model: model}}
STAGES
publish:
  splits: {train: pool, validation: split.validation, test: split.test}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", choices=SETS, default="digits")
    parser.add_argument("--keep", nargs="+", default=["2%", "10%", "30%"])
    parser.add_argument("--seeds", type=int, default=5, help="Students of a choice, and draws of the random one.")
    parser.add_argument("--steps", type=int, default=200, help="Optimizer steps of a student, at every budget.")
    parser.add_argument("--store", type=Path, help="A folder for scores and choices, which another budget finds there; else a temporary one.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        store = args.store or Path(scratch) / "store"
        for keep in args.keep:
            build_choices(args.data, keep, args.seeds, Path(scratch) / "selection.yaml", store)
            began = time.process_time()
            lines = list(judged(str(store), SETS[args.data][3], args.seeds, args.steps, Path(scratch)))
            print(f"\n{args.data}, {keep} kept, {args.seeds} seeds of {args.steps} steps; {time.process_time() - began:.0f} s of CPU for the students\n")
            show(["choice", "images", "test accuracy %, 95 %", "points over random, 95 %"], lines)


def build_choices(data: str, keep: str, seeds: int, path: Path, store: Path) -> None:
    """One recipe with all choices of one budget; what they choose by is made once a store."""
    raw, split, pool, side_px, pixels = SETS[data]
    stages = {f"choice{place}": choice for place, choice in enumerate(CHOICES.values())}
    stages |= {f"random{seed}": RANDOM.replace("SEED", str(seed)) for seed in range(seeds)}
    text = RECIPE.replace("RAW", raw).replace("SPLIT", split).replace("POOL", pool).replace("PIXELS", pixels).replace("SIDE", str(side_px))
    lines = "\n".join(f"  {name}: {stage}" for name, stage in stages.items())
    path.write_text(text.replace("STAGES", lines.replace("BUDGET", f"keep: {keep}").replace("CUT", CUT.get(keep, "10%"))))
    build_recipe(path, store)


def judged(store: str, side_px: int, seeds: int, steps: int, scratch: Path) -> Iterator[tuple[str, ...]]:
    """A line a choice, the best first."""
    split = stillroom.table("selection.split", store)
    test = StoredTable(split.store, replace(split.ref, split="test"))
    pixels_NCSS, labels_N = load_images(test, scratch, side_px=side_px, name="test"), load_labels(test)[0]

    def accuracies(cores: list[Any], weighted: bool = False) -> np.ndarray:
        right = [student(core, side_px, seed, steps, scratch, weighted).probs(pixels_NCSS, 256).argmax(1) == labels_N for seed, core in enumerate(cores)]
        return 100 * np.mean(right, axis=1)

    draws = [stillroom.table(f"selection.random{seed}", store) for seed in range(seeds)]
    found = {"random": (draws[0].rows, accuracies(draws))}
    for place, name in enumerate(CHOICES):
        core = stillroom.table(f"selection.choice{place}", store)
        found[name] = core.rows, accuracies([core] * seeds)
        if name == WEIGHTED:
            found[f"{name}, weighted"] = core.rows, accuracies([core] * seeds, weighted=True)
    for name, (rows, percent) in sorted(found.items(), key=lambda item: -item[1][1].mean()):
        gain = "" if name == "random" else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(percent - found["random"][1]))
        yield name, str(rows), "{:.1f} [{:.1f}, {:.1f}]".format(*interval(percent)), gain


def student(core: Any, side_px: int, seed: int, steps: int, scratch: Path, weighted: bool) -> Classifier:
    """A student of one choice; those of one seed start from the same weights."""
    samples = load_labelled(core, scratch, side_px=side_px)
    draw, targets_NK = Draw(0, "benchmarks.selection"), np.eye(len(samples.label_names), dtype=np.float32)[samples.labels_N]
    if weighted:
        targets_NK *= core.frame(["weight"])["weight"].to_numpy()[:, None]
    net = seeded_net("cnn", f"init/{seed}", draw, **samples.shape)
    order = index_batches(len(targets_NK), 64, f"order/{seed}", draw)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.asarray(samples.pixels_NCSS[order(step)])), torch.from_numpy(targets_NK[order(step)])

    fit(net, batch, steps=steps, lr=3e-3, weight_decay=0.05, device="cpu", mean=samples.mean, std=samples.std)
    return Classifier(net, samples.config("cnn"), "student", "cpu")


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and the ends of Student's 95 % interval over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


if __name__ == "__main__":
    main()
