"""Trajectory matching: what its three gradients cost and how they differ, and what the authors' code costs.

python benchmarks/matching.py [--authors FOLDER] [--data data/fashion_mnist] [--rounds 3] [--only cost,memory,cosine,accuracy]

cost:     CPU seconds an iteration of exact, tesla, unrolled, and of the code of TESLA's authors (FOLDER: a checkout of justincui03/tesla), in turns.
memory:   the most that autograd holds, and the process's highest resident memory, at T = 5 to 50; --plot FILE draws both as SVG.
cosine:   between tesla's gradient and the exact one, on segments of real experts, by T.
accuracy: of nets trained on what exact and tesla distil in equal time, five seeds each.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from _others import machine, show

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field, with_meaning
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable

THEIRS = Path(__file__).parent / "against" / "tesla_authors.py"
ENGINES = ("exact", "tesla", "unrolled")
STEPS = 10
SETTING = "ConvNet-D3, width 128, 10 images of 3x32x32"
COLOURS = {"exact": "#1f6f3f", "tesla": "#1d5fa8", "unrolled": "#b3451e"}
COLOUR = {"num_classes": 10, "channels": 3, "side_px": 32}


def problem(net, classes: int, channels: int, side_px: int, images: int, steps: int, *, augment: bool = True):
    """A student at random weights, an end nearby, images of noise: what cost and memory depend on is their shapes."""
    import torch

    from tasks.distill._matching import Step, Student, Trail
    from tasks.nets.dsa import DSA_OPS, draw_dsa

    generator = torch.Generator().manual_seed(0)
    student = Student(net, "the net")
    start_P = student.flat(net.state_dict())
    end_P = start_P + 0.01 * torch.randn(start_P.shape, generator=generator)
    images_NCSS = torch.randn(images, channels, side_px, side_px, generator=generator)
    targets_NK = torch.eye(classes)[torch.arange(images) % classes]
    every = torch.arange(images)
    drawn = [Step(every, draw_dsa(DSA_OPS if augment else (), step, images)) for step in range(steps)]
    return student, images_NCSS, targets_NK, 0.01, (start_P, end_P), drawn, Trail(tempfile.TemporaryFile(buffering=0))  # gone with it


def cost(authors: Path | None, rounds: int) -> None:
    """Median CPU seconds an iteration; the net, images and augmentations are those of the authors' CIFAR-10 setting at one image a class."""
    import torch

    from tasks.distill._matching import Student, matching_gradient
    from tasks.nets.zoo import build

    torch.set_num_threads(1)
    net = build("convnet3:128", **COLOUR)
    given = problem(net, 10, 3, 32, 10, STEPS)

    class Alike(Student):
        def slope(self, *args, written_out: bool = True):
            return super().slope(*args)

    runs = {engine: (engine, given) for engine in ENGINES} | {"tesla, with exact's tangents": ("tesla", (Alike(net, "the net"), *given[1:]))}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        if authors:
            command = [sys.executable, str(THEIRS), str(authors), str(STEPS), "3"]
            said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if said.returncode:
                raise RuntimeError(said.stderr[-3000:])
            seconds.setdefault("the authors' code", []).extend(map(float, said.stdout.split()[-2:]))
        for name, (engine, asked) in runs.items():
            for _ in range(2):
                begun = time.process_time()
                matching_gradient(engine, *asked)
                seconds.setdefault(name, []).append(time.process_time() - begun)
    base = median(seconds["tesla"])
    theirs = median(seconds["the authors' code"]) if authors else float("nan")
    lines = [[name, f"{median(values):.2f}", f"{median(values) / base:.2f}", f"{median(values) / theirs:.2f}"] for name, values in seconds.items()]
    show([f"{SETTING}, T = {STEPS}", "CPU s an iteration", "of tesla", "of the authors'"], lines)


def memory(plot: Path | None) -> None:
    """Each figure in a process of its own."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for engine in ENGINES:
        found[engine] = {}
        for steps in (5, 10, 20, 50):
            if engine == "unrolled" and steps == 50:
                continue
            said = subprocess.run([sys.executable, __file__, "--peaks", engine, str(steps)], capture_output=True, text=True, check=True)
            graph, peak = map(float, said.stdout.split())
            found[engine][steps] = graph, peak
    lines = [
        [engine, str(steps), f"{graph:.1f}", f"{graph / of[5][0]:.2f}", f"{peak:.0f}", f"{peak / of[5][1]:.2f}"]
        for engine, of in found.items()
        for steps, (graph, peak) in of.items()
    ]
    show([SETTING, "T", "graph MB", "of T = 5", "peak MB of the process", "of T = 5"], lines)
    if plot:
        plot.write_text(memory_plot(found))


def memory_plot(found: dict[str, dict[int, tuple[float, float]]]) -> str:
    """Both figures of `memory` against T, as SVG: lines on linear scales from 0, named at their ends."""
    from flows.report.charts import Scale, ticks

    width, height, left, right, top, bottom = 420, 330, 50, 100, 84, 44  # of a panel, and of what lies around its axes
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height}" font-family="sans-serif" font-size="12" fill="#333">',
        "<title>Memory of the three gradients of trajectory matching against the steps of a student</title>",
        f'<rect width="{2 * width}" height="{height}" fill="#fff"/>',
        '<text x="16" y="26" font-size="16" font-weight="bold">Memory of a gradient against the student’s steps T, MB</text>',
        f'<text x="16" y="46" fill="#666">{SETTING}, on a CPU; unrolled up to T = 20</text>',
    ]
    most = 1.1 * max(value for of in found.values() for pair in of.values() for value in pair)  # one scale for both panels
    marks, last = ticks(Scale(0, most)), max(steps for of in found.values() for steps in of)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * value / most

    for panel, title in enumerate(("held by autograd at most", "peak of the process, libraries included")):
        values = {engine: {steps: pair[panel] for steps, pair in of.items()} for engine, of in found.items()}
        x = [panel * width + left + (width - left - right) * steps / last for steps in range(last + 1)]

        parts.append(f'<text x="{x[0] - 34:.0f}" y="{top - 8}" font-weight="bold">{title}</text>')
        for mark in marks:
            parts.append(f'<path d="M{x[0]:.1f} {y(mark):.1f}H{x[-1]:.1f}" stroke="{"#ddd" if mark else "#666"}"/>')
            parts.append(f'<text x="{x[0] - 6:.1f}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:,.0f}</text>')
        for steps in sorted({steps for of in found.values() for steps in of}):
            parts.append(f'<text x="{x[steps]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{steps}</text>')
        parts.append(f'<text x="{x[-1] + 16:.1f}" y="{height - bottom + 18}">T</text>')
        named = height - bottom + 10.0  # where the name below stands: names of lines that meet keep apart
        for engine, of in sorted(values.items(), key=lambda item: list(item[1].values())[-1]):
            colour, (end, value) = COLOURS[engine], list(of.items())[-1]
            places = [(x[steps], y(value)) for steps, value in of.items()]
            parts.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places]
            named = min(named - 15, y(value) + 4)
            parts.append(f'<text x="{x[end] + 9:.1f}" y="{named:.1f}" fill="{colour}" font-weight="bold">{engine} {value:,.0f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def peaks(engine, steps: int) -> None:
    """Print megabytes: what autograd holds at most, and the process's peak."""
    import torch

    from tasks.distill._matching import matching_gradient
    from tasks.nets.zoo import build

    torch.set_num_threads(1)
    given = problem(build("convnet3:128", **COLOUR), 10, 3, 32, 10, steps)
    held = {"now": 0, "most": 0}

    class Kept:
        def __init__(self, tensor) -> None:
            self.tensor = tensor
            held["now"] += tensor.nbytes
            held["most"] = max(held["most"], held["now"])

        def __del__(self) -> None:
            held["now"] -= self.tensor.nbytes

    matching_gradient(engine, *given)  # nothing watched: the peak is that of a plain run
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        matching_gradient(engine, *given)
    print(held["most"] / 1e6, peak)


def fashion(folder: Path, train: int, tune: int, test: int) -> dict[str, MemoryTable]:
    """Images of Fashion-MNIST in a fixed random order."""
    import gzip

    def read(kind: str, name: str) -> np.ndarray:
        raw = gzip.decompress((folder / f"{kind}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28) if "images" in name else np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)

    images, labels = read("train", "images-idx3"), read("train", "labels-idx1")
    order = np.random.default_rng(0).permutation(len(images))
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field([str(label) for label in range(10)])])

    def table(pixels: np.ndarray, classes: np.ndarray) -> MemoryTable:
        return MemoryTable(pa.table([[f"s{row}" for row in range(len(pixels))], [encode_png(image[:, :, None]) for image in pixels], classes], schema=schema))

    parts = {"train": order[:train], "tune": order[train : train + tune], "rest": order[train + tune :]}
    firsts = [next(row for row in parts["train"] if labels[row] == label) for label in range(10)]
    found = {name: table(images[rows], labels[rows]) for name, rows in parts.items() if name != "rest"} | {"start": table(images[firsts], labels[firsts])}
    return found | {"test": table(read("t10k", "images-idx3")[:test], read("t10k", "labels-idx1")[:test])}


def trained_experts(samples: MemoryTable, folder: Path) -> MemoryTable:
    """Four experts of six epochs, ConvNet-D3 of width 16."""
    import torch

    from tasks.train.experts import ExpertsParams, experts

    torch.set_num_threads(1)
    params = ExpertsParams(net="convnet3:16", experts=4, epochs=6, batch_size=128, learning_rate=0.03)
    batches = []
    for unit in experts.units(params):
        (folder / unit.name).mkdir()
        work = Work(device="cpu", threads=1, scratch=folder / unit.name, draw=Draw(1, "train.experts"))
        batches += experts(unit, {"samples": samples}, params, work)
    return MemoryTable(pa.Table.from_batches(batches))


def cosine(data: dict[str, MemoryTable], models: MemoryTable, folder: Path) -> None:
    """At the start, where images are real ones, over eight segments."""
    import torch

    from tasks.distill._matching import Step, Student, Trail, matching_gradient
    from tasks.distill._synthetic import load_start
    from tasks.distill.tesla import Experts, TeslaParams
    from tasks.nets.dsa import draw_dsa
    from tasks.nets.zoo import build

    experts = Experts(models, "cpu")
    start = load_start(data["start"], folder, TeslaParams(side_px=28, channels=1), experts.config["mean"], experts.config["std"])
    student = Student(build("convnet3:16", num_classes=10, channels=1, side_px=28), "convnet3:16")
    targets_NK, every, lines = torch.eye(10)[torch.from_numpy(start.labels_N)], torch.arange(10), []
    trail = Trail(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115  # gone with it
    for steps in (1, 2, 5, 15, 30):
        for rate in (0.01, 0.03, 0.1):
            found = []
            for number in range(8):
                segment = tuple(student.flat(experts.weights(number % 4, epoch)) for epoch in (number // 4, number // 4 + 1))
                taken = [Step(every, draw_dsa((), step, 10)) for step in range(steps)]
                pair = [matching_gradient(engine, student, start.images_NCSS, targets_NK, rate, segment, taken, trail) for engine in ("exact", "tesla")]
                by_images = [matched.images_NCSS.flatten() for matched in pair]
                found.append((float(torch.cosine_similarity(*by_images, dim=0)), float(by_images[1].norm() / by_images[0].norm())))
            lines.append([str(steps), f"{rate:g}", f"{np.mean([one for one, _ in found]):.3f}", f"{np.mean([other for _, other in found]):.2f}"])
    show(["T", "student's rate", "cosine of tesla to exact", "length of tesla's, of exact's"], lines)


def accuracy(data: dict[str, MemoryTable], models: MemoryTable, folder: Path, seeds: int) -> None:
    """What each distils in the seconds of 300 exact iterations; the best on validation is judged on test, once."""
    import json

    import torch

    from tasks.distill._learning import Judge
    from tasks.distill._synthetic import distilled_fields
    from tasks.distill.tesla import TeslaParams, tesla

    config = json.loads(models.frame(["config"])["config"][0])
    results: dict[str, list[float]] = {}
    iterations = {"exact": 300, "tesla": 300}
    for seed in range(seeds):
        for engine in ("exact", "tesla"):
            params = TeslaParams(side_px=28, channels=1, iterations=iterations[engine], gradient=engine, check_nets=1)
            schema = pa.schema([with_meaning(name, field) for name, field in distilled_fields(params, data["start"].schema, soft=False).items()])
            scratch = folder / f"{engine}-{seed}"
            scratch.mkdir()
            work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(seed, "distill.tesla"))
            begun = time.perf_counter()
            inputs = {"samples": data["start"], "experts": models, "tune": data["tune"]}
            rows = pa.Table.from_batches(list(tesla(Unit("images"), inputs, params, work, schema)))
            spent = time.perf_counter() - begun
            if engine == "exact":
                first = spent
            elif seed == 0:  # equal time, from what the first pair took
                iterations["tesla"] = round(300 * first / spent)
            told = json.loads(rows["training"][0].as_py())
            images_NCSS = torch.from_numpy(np.array(rows["pixels"].to_pylist(), np.float32)).view(-1, 1, 28, 28)
            (scratch / "judge").mkdir()
            judged = Judge(config, (), params.model_copy(update={"check_nets": 3}), Work("cpu", 1, scratch / "judge", Draw(99, "judge")), data["test"])
            results.setdefault(engine, []).append(judged.accuracy(images_NCSS, torch.eye(10)[rows["label"].to_pylist()], told["learning_rate"]))
    show(
        ["gradient", "iterations", "test accuracy", "each seed"],
        [[name, str(iterations[name]), f"{100 * np.mean(found):.1f} %", " ".join(f"{100 * one:.1f}" for one in found)] for name, found in results.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/fashion_mnist"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="cost,memory,cosine,accuracy")
    parser.add_argument("--plot", type=Path, help="where `memory` is drawn, as SVG")
    parser.add_argument("--peaks", nargs=2, help=argparse.SUPPRESS)  # what `memory` runs in a process of its own
    args = parser.parse_args()
    if args.peaks:
        peaks(args.peaks[0], int(args.peaks[1]))
        return
    print(machine())
    only = args.only.split(",")
    if "cost" in only:
        cost(args.authors, args.rounds)
    if "memory" in only:
        memory(args.plot)
    if {"cosine", "accuracy"} & set(only):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = fashion(args.data, 6000, 2000, 10_000)
            models = trained_experts(data["train"], folder)
            if "cosine" in only:
                cosine(data, models, folder)
            if "accuracy" in only:
                accuracy(data, models, folder, args.seeds)


if __name__ == "__main__":
    main()
