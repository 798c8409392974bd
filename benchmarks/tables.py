"""Write and scan of a published table, against plain Lance and plain Parquet of the same rows.

python benchmarks/tables.py [--pictures 6000] [--rows 1000000] [--runs 3]

Our write is what publishing does: fragments; a digest of every column and of every file; one commit; a check of what lies there. Our scan takes a
batch after the other and holds no more than one; the others read ahead as they come. Files stay in the page cache; nobody waits for the disk.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from _others import Cost, folder_bytes, machine, medians, show

from stillroom.fields import image_field, label_field
from stillroom.stored import StoredTable, hash_field, hashes
from stillroom.stores import Store
from storage.publish import write_version

BATCH_ROWS = {"pictures": 256, "small rows": 8192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=6000, help="of 50 kB")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of an id, a label, a split and four scores")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    for name, rows in (("pictures", _pictures(args.pictures)), ("small rows", _small(args.rows))):
        _compare(name, rows, args.runs)
    print(f"medians of {args.runs}; {machine()}")


def _compare(name: str, rows: pa.Table, runs: int) -> None:
    writes: dict[str, list[Cost]] = {}
    scans: dict[str, list[Cost]] = {}
    sizes: dict[str, int] = {}
    size = BATCH_ROWS[name]
    batches = rows.to_batches(max_chunksize=size)
    for _ in range(runs):
        for way, (write, scan) in _ways(rows.schema, size).items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                written, cost = _timed(write, folder, iter(batches))
                writes.setdefault(way, []).append(cost)
                sizes[way] = folder_bytes(folder)
                seen, cost = _timed(_count, scan, folder, written)
                scans.setdefault(way, []).append(cost)
                assert seen == rows.num_rows
    megabytes = rows.nbytes / 1e6
    lines = []
    ours = (medians(writes["stillroom"]), medians(scans["stillroom"]))
    for way in writes:
        line = [way]
        for cost, own in zip((medians(writes[way]), medians(scans[way])), ours, strict=True):
            line += [f"{megabytes / cost.wall:,.0f}", f"{cost.cpu:.2f}", f"{own.wall / cost.wall:.2f}x"]
        lines.append([*line, f"{sizes[way] / 1e6:,.1f}"])
    head = [f"{rows.num_rows:,} {name}, {megabytes:,.0f} MB", "write MB/s", "CPU s", "ours takes", "scan MB/s", "CPU s", "ours takes", "MB on disk"]
    show(head, lines)
    print()


def _ways(schema: pa.Schema, size: int) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """How each writes batches into a folder, and reads them back from it."""

    def ours(folder: Path, batches: Iterator[pa.RecordBatch]) -> Any:
        return write_version(Store(folder), "rows", schema, batches, "ab" * 32).table

    def plain(folder: Path, batches: Iterator[pa.RecordBatch]) -> Any:
        return lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(folder / "rows.lance"))

    def parquet(folder: Path, batches: Iterator[pa.RecordBatch]) -> None:
        with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
            for batch in batches:
                writer.write_batch(batch, row_group_size=65536)

    return {
        "stillroom": (ours, lambda folder, ref: StoredTable(Store(folder), ref).scan(None, size)),
        "lance.write_dataset, its scanner": (plain, lambda folder, _: lance.dataset(str(folder / "rows.lance")).scanner(batch_size=size).to_batches()),
        "pyarrow's Parquet, its dataset": (parquet, lambda folder, _: pads.dataset(folder / "rows.parquet").to_batches(batch_size=size)),
    }


def _timed(work: Callable[..., Any], *given: Any) -> tuple[Any, Cost]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work(*given)
    return found, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _count(scan: Callable[..., Any], folder: Path, written: Any) -> int:
    return sum(batch.num_rows for batch in scan(folder, written))


def _pictures(count: int) -> pa.Table:
    """Bytes that don't compress, as of JPEGs."""
    rng = np.random.default_rng(0)
    images = pa.array([rng.bytes(50_000) for _ in range(count)], pa.binary())
    schema = pa.schema([("sample_id", pa.string()), image_field(), hash_field("image"), label_field(["cat", "dog"]), ("split", pa.string())])
    labels, splits = rng.integers(0, 2, count), ["train"] * count
    return pa.table([_ids(count), images, hashes(images), pa.array(labels, schema.field("label").type), splits], schema=schema)


def _small(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    scores = {f"score_{number}": rng.random(count, np.float32) for number in range(4)}
    return pa.table({"sample_id": _ids(count), "label": rng.integers(0, 10, count), **scores, "split": pa.array(["train"] * count)})


def _ids(count: int) -> pa.Array:
    """32 hex digits, as ids by content are."""
    digits = np.random.default_rng(1).integers(0, 16, (count, 32), np.uint8)
    return pa.array(np.frombuffer(b"0123456789abcdef", "S1")[digits].view("S32").ravel().astype(str))


if __name__ == "__main__":
    main()
