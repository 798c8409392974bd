"""What scoring costs beside the training that it watches, and how good the scores of each way of measuring are.

python benchmarks/scoring.py [--fashion FOLDER] [--rows 3000] [--epochs 20] [--repeats 5] [--agreement SEEDS]
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from _others import machine, show
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Draw, Unit, Work
from stillroom.tables import MemoryTable
from tasks.hardness import HARD_END
from tasks.nets.samples import load_labelled
from tasks.nets.training import fit, index_batches, seeded_net
from tasks.score.dynamics import DynamicsParams, dynamics

WRONG = 0.1
# Seeds of a score in the tables of agreement: the default.
SEEDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion", type=Path, help="A folder that recipes/fetch_fashion_mnist.sh filled.")
    parser.add_argument("--rows", type=int, default=3000, help="Of Fashion-MNIST.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--agreement", type=int, default=0, metavar="SEEDS", help="Also how well scores agree with those of this many other seeds (8, say).")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    digits_NHW, labels_N = load_digits(return_X_y=True)
    sets = {"digits": ((digits_NHW.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), labels_N)}
    if args.fashion:
        sets["Fashion-MNIST"] = (
            _idx(args.fashion / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            _idx(args.fashion / "train-labels-idx1-ubyte.gz", 8),
        )
    for name, (pixels_NHW, labels_N) in sets.items():
        pixels_NHW, labels_N = pixels_NHW[: args.rows], labels_N[: args.rows].astype(np.int64)
        print(f"\n{name}: {len(labels_N)} images, {args.epochs} epochs of cnn, one seed, one thread; the least of {args.repeats}")
        compare_costs(_table(pixels_NHW, labels_N), args.epochs, args.repeats)
        if args.agreement:
            compare_scores(pixels_NHW, labels_N, args.epochs, args.agreement)


def compare_costs(table: MemoryTable, epochs: int, repeats: int) -> None:
    """Time the bare training, and scoring in both ways, in turn; the least counts, since others on the machine only make it more."""
    ways: dict[str, Callable[[int], object]] = {
        "the training alone": lambda epochs: _train(table, DynamicsParams(epochs=epochs)),
        "scoring, measure: training": lambda epochs: _score(table, DynamicsParams(epochs=epochs), 0),
        "scoring, measure: after": lambda epochs: _score(table, DynamicsParams(epochs=epochs, measure="after"), 0),
    }
    for run in ways.values():
        run(1)  # what loads, loads here
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            begun = time.process_time()
            run(epochs)
            seconds[name].append(time.process_time() - begun)
    alone = min(seconds["the training alone"])
    show(["way", "CPU s", "of the training"], [[name, f"{min(spent):.2f}", f"{min(spent) / alone:.3f}"] for name, spent in seconds.items()])


def compare_scores(pixels_NHW: np.ndarray, labels_N: np.ndarray, epochs: int, seeds: int) -> None:
    """A tenth of the labels wrong: is it seen (AUROC), and do the scores of three seeds rank as the mean of others does (Spearman)?"""
    draws = np.random.default_rng(0)
    wrong_N = draws.random(len(labels_N)) < WRONG
    table = _table(pixels_NHW, np.where(wrong_N, (labels_N + draws.integers(1, 10, len(labels_N))) % 10, labels_N))
    means: dict[tuple[str, str], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for epoch in ("2", "default"):
        for measure in ("training", "after"):
            params = DynamicsParams(epochs=epochs, measure=measure, el2n_epochs=None if epoch == "default" else (2,))
            runs = [_score(table, params, seed) for seed in range(SEEDS + seeds)]
            means[epoch, measure] = tuple({name: np.mean([run[name] for run in part], axis=0) for name in runs[0]} for part in (runs[:SEEDS], runs[SEEDS:]))
    names = [("2", "el2n"), ("2", "grand"), *(("default", name) for name in means["default", "after"][0])]
    lines = []
    for epoch, name in names:
        line = [name + (" after epoch 2" if epoch == "2" else "")]
        for measure in ("training", "after"):
            mine, others = means[epoch, measure][0][name], [means[epoch, way][1][name] for way in (measure, "after")]
            line += [f"{roc_auc_score(wrong_N, mine):.3f}", *(f"{spearmanr(mine, other).statistic:.3f}" for other in others)]
        lines.append(line)
    print(f"a tenth of the labels wrong; {SEEDS} seeds beside {seeds} others")
    show(["score", "training: AUROC", "own rank", "rank of after", "after: AUROC", "own rank", "rank of after"], lines)


def _train(table: MemoryTable, params: DynamicsParams) -> None:
    """The training that `score.dynamics` watches, with its checkpoints and nothing else."""
    with tempfile.TemporaryDirectory() as scratch:
        work = _work(scratch)
        samples = load_labelled(table, work.scratch)
        order = index_batches(len(samples.labels_N), params.batch_size, "order/0", work.draw)
        fit(
            seeded_net(params.net, "init/0", work.draw, **samples.shape),
            lambda step: samples.at(order(step)),
            steps=-(-params.epochs * len(samples.labels_N) // params.batch_size),
            lr=params.learning_rate,
            weight_decay=params.weight_decay,
            device=work.device,
            checkpoint=work,
            mean=samples.mean,
            std=samples.std,
        )


def _score(table: MemoryTable, params: DynamicsParams, seed: int) -> dict[str, np.ndarray]:
    """Each score of a seed, turned so that high is hard; infinity as a large number."""
    with tempfile.TemporaryDirectory() as scratch:
        (batch,) = dynamics(Unit(f"seed-{seed}", value=seed), {"samples": table}, params, _work(scratch))
    signs = {name: 1 if HARD_END[name] == "high" else -1 for name in batch.schema.names if name != "sample_id"}
    return {name: np.minimum(sign * batch[name].to_numpy().astype(np.float64), 1e3) for name, sign in signs.items()}


def _work(scratch: str) -> Work:
    return Work(device="cpu", threads=1, scratch=Path(scratch), draw=Draw(7, "score.dynamics"))


def _table(pixels_NHW: np.ndarray, labels_N: np.ndarray) -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(list("0123456789"))])
    ids, images = [f"sample-{row}" for row in range(len(labels_N))], [encode_png(image_HW[:, :, None]) for image_HW in pixels_NHW]
    return MemoryTable(pa.table([ids, images, labels_N], schema=schema))


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


if __name__ == "__main__":
    main()
