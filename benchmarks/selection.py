"""Which choice of a tenth of the digits trains the best student? Hard labels, the same student, ten seeds.

python benchmarks/selection.py [--keep 10%] [--seeds 10]
"""

import argparse
import tempfile
from pathlib import Path

import _rooms  # noqa: F401

from flows.build import build_recipe

CHOICES = {
    "random": "{op: prune.random, from: looks, keep: KEEP, balance: label}",
    "EL2N, easiest": "{op: prune.by_score, from: looks, score: el2n, order: easiest, keep: KEEP, balance: label}",
    "EL2N, middle": "{op: prune.by_score, from: looks, score: el2n, order: middle, keep: KEEP, balance: label}",
    "EL2N, hardest": "{op: prune.by_score, from: looks, score: el2n, order: hardest, keep: KEEP, balance: label}",
    "CCS on EL2N, 10 % cut off": "{op: prune.ccs, from: looks, score: el2n, cut_off: 10%, keep: KEEP, balance: label}",
    "herding on pixels": "{op: prune.herding, from: looks, vectors: embedding, keep: KEEP, balance: label}",
    "moderate on pixels": "{op: prune.moderate, from: looks, vectors: embedding, keep: KEEP, balance: label}",
    "k-center on pixels": "{op: prune.k_center, from: looks, vectors: embedding, keep: KEEP, balance: label}",
    "k-medoids on pixels": "{op: prune.k_medoids, from: looks, vectors: embedding, keep: KEEP, balance: label}",
}
RECIPE = """name: selection
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  scores: {op: score.dynamics, from: split.train, net: cnn, epochs: 10, seeds: 2}
  looks: {op: score.embed, from: scores, net: pixels, side_px: 8, channels: 1}
  core: CHOICE
  proof:
    op: evaluate.student
    from: {candidate: core, raw: split.train, tune: split.validation, test: split.test}
    control: {in_place_of: core, pool: split.train}
    student: {net: cnn, steps: 400, batch_size: 64, learning_rates: [0.003, 0.01], tune_seeds: 2, seeds: SEEDS}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", default="10%")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    print(f"{'choice':<28}{'images':>8}{'test accuracy, 95 %':>28}{'points over random':>27}")
    with tempfile.TemporaryDirectory() as folder:
        for name, choice in CHOICES.items():
            path = Path(folder) / "selection.yaml"
            path.write_text(RECIPE.replace("CHOICE", choice).replace("KEEP", args.keep).replace("SEEDS", str(args.seeds)))
            proof = build_recipe(path, Path(folder) / "store").proof
            assert proof is not None
            arm = next(arm for arm in proof["arms"] if arm["arm"] == "candidate.hard")
            gain = next(line for line in proof["differences"] if line["against"] == "control.hard")
            accuracy, over = [100 * arm[key] for key in ("accuracy", "low", "high")], [100 * gain[key] for key in ("gain", "low", "high")]
            print("{:<28}{:>8}{:>12.1f} % [{:.1f}, {:.1f}]{:>+14.1f} [{:+.1f}, {:+.1f}]".format(name, arm["rows"], *accuracy, *over))


if __name__ == "__main__":
    main()
