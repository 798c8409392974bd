"""Embed and generate on two Ray nodes of one core each, against one such node: the same stages, the same digests.

python benchmarks/ray.py            about ten minutes; needs `pip install 'stillroom[ray]'` and two free cores
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _rooms  # noqa: F401

os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np

from flows.plan import make_plan
from stillroom.records import Record
from tasks.engine import run_stage
from tasks.pool import Job, Pool

# What the measured stages need is made once; the nets needn't be good, only as slow as good ones.
RECIPE = """name: nodes
seed: 1
stages:
  raw: {op: ingest.idx, images: images.idx, labels: labels.idx}
  few: {op: table.sample, from: raw, rows: 1000}
  parts: {op: table.split, from: few, test: 10%}
  teacher: {op: train.teacher, from: {samples: parts.train}, net: "cnn:64", steps: 2}
  painter: {op: train.class_diffusion, from: parts.train, side_px: 16, width: 16, steps: 2}
  embed: {op: score.embed, from: {samples: raw, model: teacher}, net: model, features: 128}
  generate: {op: generate.class_diffusion, from: painter, per_class: PER_CLASS, rows_per_unit: 64, steps: 20}
"""
MEASURED = ("embed", "generate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=32768, help="of 28 x 28 pixels, to embed; a unit has 4,096")
    parser.add_argument("--per-class", type=int, default=128, help="images to generate of each of ten classes; a unit has 64")
    parser.add_argument("--repeats", type=int, default=2, help="one node and two in turn, so often; the quicker run of each counts")
    args = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("Ray isn't installed, nothing measured: pip install 'stillroom[ray]'")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder, args.images)
        (folder / "recipe.yaml").write_text(RECIPE.replace("PER_CLASS", str(args.per_class)))
        prepare(folder)
        runs = [(nodes, measure(folder, nodes)) for _ in range(args.repeats) for nodes in (1, 2)]
    print(f"{'stage':<12}{'one node':>12}{'two nodes':>12}{'faster':>10}   digests")
    for stage in MEASURED:
        seconds = {nodes: min(found[stage][0] for count, found in runs if count == nodes) for nodes in (1, 2)}
        digests = {found[stage][1] for _, found in runs}
        print(f"{stage:<12}{seconds[1]:>10.1f} s{seconds[2]:>10.1f} s{seconds[1] / seconds[2]:>9.2f}x   {'equal' if len(digests) == 1 else 'DIFFER'}")
    print(f"load when it ended: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")


def write_images(folder: Path, count: int) -> None:
    """Write idx files of noise in ten classes."""
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (count, 28, 28), np.uint8), "labels": (np.arange(count) % 10).astype(np.uint8)}
    for name, array in arrays.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"{name}.idx").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def prepare(folder: Path) -> None:
    """Build all but the measured stages in the store `base`."""
    plan = make_plan(folder / "recipe.yaml", folder / "base")
    pool = Pool(2)
    records: dict[str, Record] = {}
    for planned in plan.stages:
        if planned.name not in MEASURED:
            records[planned.name] = run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
    pool.close()


def measure(folder: Path, nodes: int) -> dict[str, tuple[float, str]]:
    """Seconds and digest of each measured stage on a cluster of so many nodes, whose workers have started."""
    from ray.cluster_utils import Cluster

    from tasks.ray_pool import RayPool

    store = folder / "measured"
    shutil.copytree(folder / "base", store)
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    pool = RayPool(cluster.address)
    try:
        pool.run([Job(_warm_up, ())] * nodes, stage="warm up")
        plan = make_plan(folder / "recipe.yaml", store)
        tables = {planned.name: planned.record.table for planned in plan.stages if planned.record}
        found = {}
        for planned in plan.stages:
            if planned.name in MEASURED:
                begun = time.perf_counter()
                record = run_stage(plan.spec(planned, tables), pool)
                found[planned.name] = (time.perf_counter() - begun, record.table.digest)
    finally:
        pool.close()
        cluster.shutdown()
        shutil.rmtree(store)
    print(f"{nodes} node{'s' if nodes > 1 else ''}: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, (seconds, _) in found.items()), file=sys.stderr)
    return found


def _warm_up() -> None:
    import time

    import diffusers  # noqa: F401
    import torch  # noqa: F401

    time.sleep(2)  # so that the next one goes to the other node


if __name__ == "__main__":
    main()
