"""Trajectory matching and distribution matching beside random, herding and k-medoids of equal size, on real images.

python benchmarks/distilled.py DATA [--ipc 1] [--width 32] [--iterations 600] [--store STORE]

DATA: fashion or tiles; `make data` brings both. One build for each number of images per class; experts are trained once a store.
"""

import argparse
import tempfile
import time
from pathlib import Path

from _others import machine, show

DATA = Path(__file__).parent.parent / "data"
FASHION = """  raw:
    op: ingest.idx
    images: DATA/fashion_mnist/train-images-idx3-ubyte.gz
    labels: DATA/fashion_mnist/train-labels-idx1-ubyte.gz
    test_images: DATA/fashion_mnist/t10k-images-idx3-ubyte.gz
    test_labels: DATA/fashion_mnist/t10k-labels-idx1-ubyte.gz
    classes: [t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot]
  split: {op: table.split, from: raw, given: {column: split}, validation: 3%}
  pool: {op: prune.random, from: split.train, keep_rows: POOL}
"""
TILES = """  raw: {op: ingest.parquet, path: DATA/tiles/tiles.parquet, id: "column:key"}
  split: {op: table.split, from: raw, given: {column: split}}
  pool: {op: prune.random, from: split.train, keep_rows: POOL, balance: proportional}
"""
RECIPE = """name: distilled-SET
seed: 7
stages:
STAGES
  looks: {op: score.embed, from: pool, net: pixels, side_px: SIDE, channels: CHANNELS}
  start: {op: prune.herding, from: looks, vectors: embedding, images_per_class: IPC}
  experts: {op: train.experts, from: pool, net: "convnet3:WIDTH", experts: EXPERTS, epochs: EPOCHS, batch_size: BATCH, learning_rate: 0.03}
  tesla:
    op: distill.tesla
    from: {samples: start, experts: experts, tune: split.validation}
    side_px: SIDE
    channels: CHANNELS
    iterations: ITERATIONS
    batch_size: 50
    check_epochs: 200
    check_nets: 1
  dm:
    op: distill.dm
    from: {samples: start, real: pool, tune: split.validation}
    side_px: SIDE
    channels: CHANNELS
    net: "convnet3:WIDTH"
    iterations: 300
    augment: []
    check_epochs: 200
    check_nets: 1
    learning_rate: 0.03
  judged:
    op: evaluate.distilled
    from: {tesla: tesla, dm: dm, real: pool, tune: split.validation, test: split.test}
    protocol: table
    epochs: 300
    nets: ["convnet3:WIDTH", "mlp:128"]
    learning_rates: [0.01, 0.03]
    real_epochs: 0
    robustness: false
publish:
  splits: {train: tesla, validation: split.validation, test: split.test}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=["fashion", "tiles"])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--pool", type=int, default=6000)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--store")
    args = parser.parse_args()
    from flows.build import build_recipe
    from flows.tables import table

    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        store, lines = args.store or str(Path(folder) / "store"), []
        for images in args.ipc:
            values = {
                "STAGES": FASHION if args.data == "fashion" else TILES,
                "SET": args.data,
                "DATA": DATA,
                "SIDE": 28 if args.data == "fashion" else 32,
                "CHANNELS": 1 if args.data == "fashion" else 3,
                "IPC": images,
                **{name.upper(): getattr(args, name) for name in ("width", "pool", "experts", "epochs", "batch", "iterations")},
            }
            text = RECIPE
            for name, value in values.items():
                text = text.replace(name, str(value))
            path = Path(folder) / "distilled.yaml"
            path.write_text(text)
            begun = time.perf_counter()
            build_recipe(path, store)
            print(f"{images} images a class: {time.perf_counter() - begun:.0f} s")
            judged = table(f"distilled-{args.data}.judged", store=store).frame()
            for row in judged.to_dicts():
                if row["kind"] == "arm" and row["arm"] != "candidate_8_bit":
                    arm = row["set"] if row["arm"] == "candidate" else row["arm"]
                    lines.append([arm, str(images), row["net"], f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"])
        show(
            ["set", "images a class", "net", "test accuracy %, 95 %"],
            sorted(map(list, {tuple(line) for line in lines}), key=lambda line: (int(line[1]), line[2])),
        )


if __name__ == "__main__":
    main()
