"""Seconds and memory of `stillroom diff` and `stillroom explain` between two snapshots of a million rows.

python benchmarks/history.py                    a million rows, no views
python benchmarks/history.py --views 4          the same with four stored views a row
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _rooms  # noqa: F401
import numpy as np
import pyarrow as pa

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field
from stillroom.format import prepare
from stillroom.records import TableRef
from stillroom.soft_labels import encode, soft_label_type
from stillroom.stores import Store
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field
from storage.commits import commit_fragments, version_facts, write_batches
from storage.publish import publish_manifest

NAMES = [f"class {index}" for index in range(100)]
BATCH = 65_536
REMOVED = pa.schema(
    [("sample_id", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("kind", pa.string()), ("input", pa.string()), ("row", pa.int64())]
)
CHILD = """
import re, resource, sys, time
sys.argv = ["stillroom", *sys.argv[1:]]
started = time.perf_counter()
from flows.cli.app import main
try:
    main()
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss would count what the parent held when it forked.
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(f"{time.perf_counter() - started:.2f} {used.ru_utime + used.ru_stime:.2f} {peak}", file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--views", type=int, default=0, help="stored views a row: each is some 60 bytes that diff has to read")
    parser.add_argument("--show", action="store_true", help="print what the commands print, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        started = time.perf_counter()
        make(store, args.rows, args.views)
        size = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
        print(f"two snapshots of {args.rows:,} rows made in {time.perf_counter() - started:.0f} s, {size / 1e9:.2f} GB; {os.cpu_count()} cores")
        print(f"{'command':<44}{'seconds':>10}{'of CPU':>10}{'peak memory':>14}")
        kept, dropped = sample_id(args.rows), sample_id(args.rows // 20)
        for words in (
            ["--version"], ["diff", "bench@1", "bench@2"], ["diff", "bench@1", "bench@2", "--html", f"{scratch}/diff.html"],
            ["explain", "bench@2", kept], ["explain", "bench@2", dropped], ["explain", "bench@2", f"folder/{args.rows:07}.png"], ["explain", "bench@2", "zzz"],
            ["show", "bench@2", "--lineage"],
        ):  # fmt: skip
            seconds, cpu, memory = run([*words, *(["--store", store.uri] if words != ["--version"] else [])], args.show)
            shown = " ".join(word.replace(scratch, "…") for word in words)
            print(f"{shown[:42]:<44}{seconds:>10.1f}{cpu:>10.1f}{memory / 1e6:>11.0f} MB")
        print("(10^6 bytes, the interpreter and its libraries included; seconds with imports)")


def run(words: list[str], show: bool) -> tuple[float, float, int]:
    """Run a command in a process of its own: seconds, its imports included, seconds of CPU, and bytes of memory at the peak."""
    ended = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    if show:
        print(ended.stdout, ended.stderr)
    seconds, cpu, kilobytes = ended.stderr.strip().splitlines()[-1].split()
    return float(seconds), float(cpu), int(kilobytes) * 1024


def make(store: Store, rows: int, views: int) -> None:
    """Publish bench@1 and bench@2: of the rows, 5 % are replaced, 2 % relabelled, 1 % moved to another split, and all have another score."""
    prepare(store)
    step = rows // 20
    for number, (first, last) in enumerate(((0, rows), (step, rows + step)), start=1):
        raw = write(store, "stages/bench.raw", number, [*batches(first, last, number, views, source_only=True)])
        removed = write(store, "stages/bench.core.removed", number, [gone(first, first + step)])
        core = write(store, "stages/bench.core", number, batches(first + step, last, number, views))
        table = write(store, "bench", number, batches(first + step, last, number, views))
        stages = [
            stage("raw", "ingest.image_folder", "source", raw, {}, None),
            stage("core", "prune.by_score", "select", core, {"samples": {"stage": "raw", "split": None}}, removed),
        ]
        splits = {"train": 0, "validation": 0, "test": 0}
        for index in range(first + step, last):
            splits[split_of(index, number)] += 1
        publish_manifest(
            store,
            {
                "format": 1, "name": "bench", "digest": f"{number}" * 64, "rows": table.rows, "splits": splits,
                "table": {"name": table.name, "version": table.version, "fingerprint": table.fingerprint, "rows": table.rows, "digest": "", "columns": {}},
                "files": version_facts(store, [table], {}), "recipe": {"text": "", "path": "bench.yaml", "overrides": []}, "seed": 7, "trial": False,
                "published": {split: {"stage": "core", "split": split} for split in splits}, "bytes": 0, "stages": stages,
                "environment": {"python": "3.11", "packages": {}}, "gates": [], "proof": None, "seconds": 1.0,
            },
        )  # fmt: skip


def write(store: Store, name: str, number: int, parts: Any) -> TableRef:
    """Write batches as one version of a table."""
    parts = iter(parts)
    first = next(parts)

    def everything() -> Iterator[pa.RecordBatch]:
        yield first
        yield from parts

    fingerprint = f"{name.encode().hex()}{number}".ljust(64, "0")[-64:]
    return commit_fragments(store, name, first.schema, write_batches(store, name, everything(), first.schema), fingerprint=fingerprint)


def batches(first: int, last: int, number: int, views: int, *, source_only: bool = False) -> Iterator[pa.RecordBatch]:
    """Rows of one snapshot, shuffled as publishing does, in batches."""
    order = np.random.default_rng(number).permutation(np.arange(first, last))
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        rng = np.random.default_rng([number, start])
        label = np.where(index % 50 == 7, (index // 100 + number) % 100, index // 100 % 100)
        ids = [sample_id(one) for one in index]
        hashes = np.stack([index.astype(np.uint64), np.full(len(index), 7, np.uint64)], axis=1).tobytes()
        columns = {
            "sample_id": pa.array(ids), "image": pa.array([b"%064d" % one for one in index], pa.binary()),
            "image_hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(index), [None, pa.py_buffer(hashes)]),
            "width": pa.array(np.full(len(index), 32, np.int32)), "label": pa.array(label, pa.int64()), "label_name": pa.array([NAMES[one] for one in label]),
            "source": pa.array([f"folder/{one:07}.png" for one in index]), "split": pa.array([split_of(one, number) for one in index]),
        }  # fmt: skip
        fields = [
            image_field() if name == "image" else label_field(NAMES) if name == "label" else pa.field(name, column.type) for name, column in columns.items()
        ]
        if not source_only:
            scores = {"el2n": rng.gamma(2.0 + 0.2 * number, size=len(index)), "aum": rng.normal(size=len(index)), "forgetting": rng.poisson(2, len(index))}
            columns |= {name: pa.array(values.astype(np.float32)) for name, values in scores.items()}
            fields += [pa.field(name, pa.float32()) for name in scores]
            if views:
                columns["views"], field = views_of(ids, views, number, rng)
                fields.append(field)
        yield pa.record_batch(list(columns.values()), schema=pa.schema(fields))


def views_of(ids: list[str], count: int, seed: int, rng: np.random.Generator) -> tuple[pa.Array, pa.Field]:
    """Stored views with soft labels of ten of a hundred classes."""
    policy = ViewPolicy()
    drawn = draw_views(policy, ids, np.full((len(ids), 2), 32), Draw(seed, "bench"), count)
    kind = soft_label_type(len(NAMES), 10)
    labels = encode(rng.dirichlet(np.full(len(NAMES), 0.1), count * len(ids)), 10)
    flat = drawn.flatten()
    field = views_field(view_contract(policy), kind, {"num_classes": len(NAMES), "top_k": 10, "temperature": 1.0})
    view = pa.StructArray.from_arrays([*flat.flatten(), labels], fields=list(field.type.value_type))
    return pa.ListArray.from_arrays(drawn.offsets, view).cast(field.type), field


def gone(first: int, last: int) -> pa.RecordBatch:
    """The rows that the second stage drops."""
    index = range(first, last)
    columns = [
        [sample_id(one) for one in index], [f"folder/{one:07}.png" for one in index], [f"el2n {one}: the easiest leave" for one in index],
        ["dropped"] * len(index), ["samples"] * len(index), list(index),
    ]  # fmt: skip
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, REMOVED, strict=True)], schema=REMOVED)


def stage(name: str, op: str, shape: str, table: TableRef, inputs: dict[str, Any], removed: TableRef | None) -> dict[str, Any]:
    """A manifest's line of a stage."""
    left = removed.rows if removed else 0
    return {
        "name": name, "op": op, "version": 1, "shape": shape, "gives": "samples", "hidden": False, "state": "Built", "fingerprint": table.fingerprint,
        "inputs": inputs, "params": {"score": "el2n", "order": "hardest", "keep": 0.95} if removed else {}, "seed": 7, "seconds": 1.0, "rows": table.rows,
        "counts": {"in": table.rows + left, "out": table.rows, "dropped": left, "rejected": 0, "merged": 0}, "digest": table.fingerprint,
        "table": {"name": table.name, "version": table.version, "rows": table.rows, "fingerprint": table.fingerprint}, "metrics": {}, "environment": {},
        "removed": {"name": removed.name, "version": removed.version, "rows": left, "fingerprint": removed.fingerprint} if removed else None,
    }  # fmt: skip


def sample_id(index: int) -> str:
    """A made-up id of a row: the same in both snapshots."""
    return f"{(int(index) * 0x9E3779B97F4A7C15F39CC0605CEDC835) % (1 << 128):032x}"


def split_of(index: int, number: int) -> str:
    """Nine in ten train; one in a hundred is in another split in the second snapshot."""
    place = (int(index) * 7919) % 100
    return "test" if place < 5 else "validation" if place < 10 or (place == 10 and number == 2) else "train"


if __name__ == "__main__":
    main()
