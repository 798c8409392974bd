"""Stored views with a teacher's labels beside what a trainer can do without them, in equal steps of one student.

python benchmarks/reinforce.py fashion|tiles [--images 1000] [--epochs 90] [--seeds 5] [--keep FOLDER]     (`make data` first)

The teacher is trained on all training images, of which the student has `--images`; "own teacher" is trained on those alone.
"Online" rows draw their views anew in every epoch, but show the plain image in every eighth, as often as K = 8 does; all
seeds see one draw. Each row has the learning rate that is best for it, by one further student for each rate on training images
that no student has. In a trial: --seeds 1 --epochs 5 --teacher-steps 100 --images 500 --rates 0.01.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from _others import machine, show

import stillroom
from flows.build import build_recipe
from stillroom.draws import Draw
from stillroom.operators import Table
from stillroom.tables import MemoryTable
from tasks.nets.models import Classifier, accuracy, load_classifiers
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import channel_stats, fit, seeded_net
from tasks.statistics import Estimate, calibration_shares, mean_interval
from tasks.train._arm import Arm, load_stored

# S = seeds, N = test images, M = the student's images, K = classes

DATA = Path(__file__).parents[1] / "data"
RAW = {
    "fashion": f"""  raw:
    op: ingest.idx
    images: {DATA}/fashion_mnist/train-images-idx3-ubyte.gz
    labels: {DATA}/fashion_mnist/train-labels-idx1-ubyte.gz
    test_images: {DATA}/fashion_mnist/t10k-images-idx3-ubyte.gz
    test_labels: {DATA}/fashion_mnist/t10k-labels-idx1-ubyte.gz
    classes: [t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot]""",
    "tiles": f"""  raw: {{op: ingest.parquet, path: {DATA}/tiles/tiles.parquet, id: "column:key"}}""",
}
# Crops of 60 % and more, half of them flipped, moved by up to 2 px: as in the rows that draw them anew.
SHAPE = "crop_scale: [0.6, 1.0], flip: 0.5, shift_px: 2, rotate_deg: 0, scale: 0"
RECIPE = """name: reinforce-SET
seed: 7
stages:
RAW
  split: {op: table.split, from: raw, given: {column: split}}
  pool: {op: prune.random, from: split.train, keep_rows: IMAGES, balance: proportional}
  teacher: {op: train.teacher, from: split.train, net: "TEACHER", steps: STEPS, batch_size: 128, augment: AUGMENT}
  own: {op: train.teacher, from: pool, net: "cnn:32", steps: OWN, seeds: 2, augment: AUGMENT}
  stored: {op: reinforce.teacher, from: {samples: pool, teacher: teacher}, views: {count: 16, policy: [identity, crop, flip, affine], SHAPE}}
  stored_own: {op: reinforce.teacher, from: {samples: pool, teacher: own}, views: {count: 16, policy: [identity, crop, flip, affine], SHAPE}}
  online: {op: reinforce.teacher, from: {samples: pool, teacher: teacher}, views: {count: EPOCHS, policy: [crop, flip, affine], SHAPE}}
""".replace("AUGMENT", "{shift_px: 2, rotate_deg: 0, scale: 0.1, flip: true}")
SMOOTHING, BATCH, HELD_OUT = 0.1, 64, 2000
# As often as one of 8 stored views.
PLAIN_EVERY = 8


class Row(NamedTuple):
    """What a student is trained on: a stage's images and labels, which come from where, and how many of its views."""

    stage: str
    labels: str = "teacher"
    views: int | None = None


ROWS = {
    "hard": Row("stored", "hard", 1),
    "label smoothing": Row("stored", "smoothed", 1),
    "online augmentation": Row("online", "hard"),
    "augmentation and smoothing": Row("online", "smoothed"),
    "reinforced, K = 1": Row("stored", views=1),
    "reinforced, K = 8": Row("stored", views=8),
    "reinforced, K = 16": Row("stored"),
    "own teacher, K = 16": Row("stored_own"),
    "online distillation": Row("online"),
    "labels of another of the class": Row("stored", "another's"),
}
WITHOUT_TEACHER = list(ROWS)[:4]
FIGURES = ["accuracy %", "ECE %", "NLL, nats"]  # each with its 95 % interval
JUDGED = ["reinforced, K = 8", "reinforced, K = 16", "own teacher, K = 16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=RAW)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--net", default="cnn:16")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01, 0.03])
    parser.add_argument("--teacher", default="cnn:64")
    parser.add_argument("--teacher-steps", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="tables and answers stay here, and a later call with equal settings goes on from them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        benched = Bench(args, args.keep or Path(scratch))
        print(f"{machine()}; {args.data}, {args.images} images, {args.epochs} epochs, {args.net}")
        benched.build()
        benched.tell_teachers()
        for name in ROWS:
            benched.rate(name)
        print("learning rates: " + ", ".join(f"{name} {benched.rate(name):g}" for name in ROWS), flush=True)
        for seed in range(args.seeds):  # rows within: what is stopped has compared all rows alike
            for name in ROWS:
                benched.answers(name, seed)
        report({name: Judged.of(np.stack([benched.answers(name, seed) for seed in range(args.seeds)]), benched.labels_N) for name in ROWS})


class Bench:
    """The tables of one recipe, and the answers of students that were trained on them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.store = args, folder, folder / "store"
        self.arms: dict[str, Arm] = {}

    def build(self) -> None:
        """Build the recipe, and read the test split."""
        args = self.args
        values = {"SET": args.data, "RAW": RAW[args.data], "SHAPE": SHAPE, "IMAGES": args.images, "EPOCHS": args.epochs, "STEPS": args.teacher_steps}
        values["TEACHER"] = args.teacher
        text = RECIPE
        for name, value in (values | {"OWN": steps(args)}).items():
            text = text.replace(name, str(value))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{args.data}.yaml"
        path.write_text(text)
        begun = time.perf_counter()
        build_recipe(path, self.store, workers=1)
        print(f"built in {time.perf_counter() - begun:.0f} s", flush=True)
        test = self.of_split("test")
        self.labels_N, self.names = load_labels(test)
        self.labels_M = load_labels(self.table("pool"))[0]
        self.pixels_NCSS = load_images(test, self.folder)
        # Training images that no student has: the rates are chosen on them.
        rest = self.of_split("train").table
        rest = rest.filter(pc.invert(pc.is_in(rest["sample_id"], value_set=pa.array(self.table("pool").frame(["sample_id"])["sample_id"].to_arrow()))))
        held_out = MemoryTable(rest.slice(0, HELD_OUT))
        self.held_out_labels, self.held_out_pixels = load_labels(held_out)[0], load_images(held_out, self.folder, name="held-out")

    def table(self, stage: str) -> Table:
        """A stage's table."""
        return stillroom.table(f"reinforce-{self.args.data}.{stage}", store=self.store)

    def of_split(self, name: str) -> MemoryTable:
        """The samples of a split."""
        batches = list(self.table("split").scan(["sample_id", "image", "label", "split"]))
        return MemoryTable(pa.Table.from_batches([batch.filter(pc.equal(batch["split"], name)) for batch in batches]))

    def tell_teachers(self) -> None:
        """What the teachers are worth, on test images and on the views that they label."""
        for name, stage, saw in (("teacher", "stored", self.of_split("train")), ("own", "stored_own", self.table("pool"))):
            members = [member.with_labels(self.names) for member in load_classifiers(self.table(name), "cpu")]
            right = accuracy(members, self.pixels_NCSS, self.labels_N, 256)
            arm, rows = self.arm(stage), np.arange(len(self.labels_M))
            of_views = [(arm.targets(np.full(len(rows), view), rows).argmax(1) == self.labels_M).mean() for view in range(1, len(arm.pixels_VNCSS))]
            print(f"{name} of {saw.rows} images: right on {100 * right:.1f} % of the test images, {100 * np.mean(of_views):.1f} % of the students' views")

    def arm(self, stage: str) -> Arm:
        """A stage's views and labels, replayed once."""
        if stage not in self.arms:
            scratch = self.folder / "pixels" / stage
            scratch.mkdir(parents=True, exist_ok=True)
            arm = load_stored(self.table(stage), scratch, None, None, self.args.epochs)
            self.arms[stage] = with_plain(arm, self.arm("stored")) if stage == "online" else arm
        return self.arms[stage]

    def rate(self, name: str) -> float:
        """The learning rate with which one more student of a row is most often right on images that no student has."""
        right = [self._kept(name, "tune", rate, self.held_out_pixels).argmax(1) == self.held_out_labels for rate in self.args.rates]
        return self.args.rates[int(np.argmax([one.mean() for one in right]))]

    def answers(self, name: str, seed: int) -> np.ndarray:
        """Probabilities of the test images, float32 [N, K], of the student of a row and a seed."""
        return self._kept(name, seed, self.rate(name), self.pixels_NCSS)

    def _kept(self, name: str, seed: int | str, rate: float, pixels_NCSS: np.ndarray) -> np.ndarray:
        """A student's probabilities, float32 [N, K]: trained now, or found."""
        args = self.args
        kept = self.folder / "answers" / f"{args.data}-{args.images}-{args.epochs}-{args.net}-{args.teacher}-{args.teacher_steps}-{rate}-{name}-{seed}.npy"
        if not kept.exists():
            begun = time.process_time()
            probs_NK = self._student(name, seed, rate).probs(pixels_NCSS, 256)
            kept.parent.mkdir(exist_ok=True)
            np.save(kept, probs_NK)
            labels_N = self.held_out_labels if seed == "tune" else self.labels_N
            right = 100 * (probs_NK.argmax(1) == labels_N).mean()
            print(f"seed {seed}, {name}, rate {rate:g}: {right:.2f} %, {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
        return np.load(kept)

    def _student(self, name: str, seed: int | str, rate: float) -> Classifier:
        args, row = self.args, ROWS[name]
        arm = self.arm(row.stage)
        shaped = Arm(arm.pixels_VNCSS[: row.views], self._targets(arm, row.labels), arm.label_names)
        # The same for all rows: of the images as they are, which the first stored view shows.
        mean, std = channel_stats(self.arm("stored").pixels_VNCSS[0])
        channels, side_px = arm.pixels_VNCSS.shape[2:4]
        draw = Draw(0, "benchmarks.reinforce")
        net = seeded_net(args.net, f"init/{seed}", draw, num_classes=len(self.names), channels=channels, side_px=side_px)
        fit(net, shaped.batches(BATCH, f"order/{seed}", draw), steps=steps(args), lr=rate, weight_decay=0.05, device="cpu", mean=mean, std=std)
        return Classifier(net, {"channels": channels, "side_px": side_px, "mean": mean, "std": std}, name, "cpu")

    def _targets(self, arm: Arm, labels: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """What is learnt of (views, rows), as `Arm.targets`."""
        if labels == "teacher":
            return arm.targets
        if labels == "another's":
            other_N = next_of_class(self.labels_M)
            return lambda views_B, rows_B: arm.targets(views_B, other_N[rows_B])
        kept, classes = 1 - (SMOOTHING if labels == "smoothed" else 0), len(self.names)
        learnt_MK = np.eye(classes, dtype=np.float32)[self.labels_M] * np.float32(kept) + np.float32((1 - kept) / classes)
        return lambda views_B, rows_B: learnt_MK[rows_B]


def with_plain(online: Arm, stored: Arm) -> Arm:
    """Views drawn anew, but in each `PLAIN_EVERY`-th epoch the image as it is, which is the first of the stored views.

    Without it a student never sees what it is tested on, and augmentation alone loses to plain images.
    """
    online.pixels_VNCSS[::PLAIN_EVERY] = stored.pixels_VNCSS[0]

    def targets(views_B: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        plain_B1 = (views_B % PLAIN_EVERY == 0)[:, None]
        return np.where(plain_B1, stored.targets(np.zeros_like(views_B), rows_B), online.targets(views_B, rows_B))

    return Arm(online.pixels_VNCSS, targets, online.label_names)


def steps(args: argparse.Namespace) -> int:
    """Optimizer steps of a student, the same for every row."""
    return -(-args.images * args.epochs // BATCH)


def next_of_class(labels_N: np.ndarray) -> np.ndarray:
    """For each row the next of its class, the first for the last: another one, wherever a class has two."""
    order_N = np.argsort(labels_N, kind="stable")
    other_N = np.empty_like(order_N)
    for label in np.unique(labels_N):
        of_class = order_N[labels_N[order_N] == label]
        other_N[of_class] = np.roll(of_class, -1)
    return other_N


class Judged(NamedTuple):
    """What S students made of N test images: right or not, each one's share in the calibration error, nats."""

    correct_SN: np.ndarray
    calibration_SN: np.ndarray
    nll_SN: np.ndarray

    @classmethod
    def of(cls, probs_SNK: np.ndarray, labels_N: np.ndarray) -> "Judged":
        """From probabilities."""
        correct_SN = (probs_SNK.argmax(2) == labels_N).astype(float)
        shares = [calibration_shares(probs_NK.max(1), correct_N) for probs_NK, correct_N in zip(probs_SNK, correct_SN, strict=True)]
        of_label_SN = probs_SNK[:, np.arange(len(labels_N)), labels_N].astype(np.float64)
        return cls(correct_SN, np.stack(shares), -np.log(np.maximum(of_label_SN, 1e-12)))


def report(judged: dict[str, Judged]) -> None:
    """Print what each row came to, how far the reinforced ones are from it, and whether they beat all rows without a teacher."""
    print()
    show(["row", *FIGURES], [[name, *told((mean_interval(a), mean_interval(b), mean_interval(c, 0, np.inf)), "")] for name, (a, b, c) in judged.items()])
    for best in JUDGED:
        gains = {name: difference(judged[best], row) for name, row in judged.items() if name != best}
        print(f"\n{best}, less the other row:")
        show(["row", *FIGURES], [[name, *told(gain, "+")] for name, gain in gains.items()])
        beaten = all(gains[name][0].low > 0 for name in WITHOUT_TEACHER)
        print(f"more accurate than every row without a teacher, beyond the interval: {'yes' if beaten else 'no'}")


def difference(one: Judged, other: Judged) -> tuple[Estimate, Estimate, Estimate]:
    """Of accuracy, calibration error and nats, paired by seed and test image."""
    accuracy, calibration, nll = (mine_SN - others_SN for mine_SN, others_SN in zip(one, other, strict=True))
    return mean_interval(accuracy, -1, 1), mean_interval(calibration, -1, 1), mean_interval(nll, -np.inf, np.inf)


def told(figures: tuple[Estimate, Estimate, Estimate], sign: str) -> list[str]:
    """Accuracy and calibration error in percent, nats as they are, each with its interval."""
    forms = [(100, f"{{:{sign}.1f}}"), (100, f"{{:{sign}.1f}}"), (1, f"{{:{sign}.3f}}")]
    return ["{} [{}, {}]".format(*(form.format(scale * number) for number in figure)) for figure, (scale, form) in zip(figures, forms, strict=True)]


if __name__ == "__main__":
    main()
