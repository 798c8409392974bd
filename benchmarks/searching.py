"""What a vector index of a published table is worth: neighbours found, milliseconds a search, bytes; the 60,000 images of Fashion-MNIST as vectors.

python benchmarks/searching.py [--rows 60000] [--queries 100]     (`make data` first)
"""

import argparse
import gzip
import tempfile
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from _others import machine, show

from stillroom.fields import vector_field
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from storage.publish import write_version

DATA = Path(__file__).parents[1] / "data" / "fashion_mnist" / "train-images-idx3-ubyte.gz"
NEIGHBOURS = 10


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=100)
    asked = parser.parse_args()
    vectors_ND = np.frombuffer(gzip.decompress(DATA.read_bytes()), np.uint8, offset=16).reshape(-1, 784)[: asked.rows].astype(np.float32) / 255
    queries = np.linspace(0, len(vectors_ND) - 1, asked.queries).astype(int)
    units_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    nearest = [set(np.argsort(-(units_ND @ units_ND[query]))[:NEIGHBOURS].tolist()) for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        without, with_one = _write(store, "plain", vectors_ND), _write(store, "indexed", vectors_ND, embedding="cosine")
        size = sum(count for key, count in store.sizes("").items() if "/_indices/" in key)
        lines = []
        for name, table, more in (("no index", "plain", {}), ("index", "indexed", {}), ("index, refine_factor 2", "indexed", {"refine_factor": 2})):
            found, ms = _search(store, table, vectors_ND, queries, more)
            hits = np.mean([len(wanted & ids) for wanted, ids in zip(nearest, found, strict=True)])
            lines.append((name, f"{hits:.1f}", f"{ms:.1f}"))
    print(f"{len(vectors_ND):,} vectors of {vectors_ND.shape[1]} numbers, {asked.queries} asked for; {machine()}")
    show(("", f"of the {NEIGHBOURS} nearest", "ms a search"), lines)
    print(f"the index: {size / vectors_ND.nbytes:.2f} of the vectors' {vectors_ND.nbytes / 1e6:.0f} MB, {with_one - without:.1f} CPU s")


def _write(store: Store, table: str, vectors_ND: np.ndarray, **index: str) -> float:
    """Publish the vectors; CPU seconds."""
    schema = with_hashes(pa.schema([("sample_id", pa.string()), vector_field("embedding", vectors_ND.shape[1])]))
    begun = time.process_time()
    batches = []
    for start in range(0, len(vectors_ND), 4096):
        part = vectors_ND[start : start + 4096]
        values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
        batches.append(pa.record_batch([pa.array([str(row) for row in range(start, start + len(part))]), values, hashes(values)], schema=schema))
    write_version(store, table, schema, batches, "ab" * 32, index=index)
    return time.process_time() - begun


def _search(store: Store, table: str, vectors_ND: np.ndarray, queries: np.ndarray, more: dict[str, Any]) -> tuple[list[set[int]], float]:
    dataset = lance.dataset(store.table_uri(table))
    wanted = {"column": "embedding", "k": NEIGHBOURS, "metric": "cosine", **more}
    found = []
    for number, query in enumerate([queries[0], *queries]):
        if number == 1:  # the first has read the index from the disk
            begun = time.perf_counter()
        ids = dataset.to_table(columns=["sample_id", "_distance"], nearest={"q": vectors_ND[query], **wanted})["sample_id"]
        found.append({int(sample) for sample in ids.to_pylist()})
    return found[1:], 1000 * (time.perf_counter() - begun) / len(queries)


if __name__ == "__main__":
    main()
