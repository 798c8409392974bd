"""Does time a row stay what it is, and memory what it was, when a dataset grows a hundredfold? Small rows through every step of a build.

python benchmarks/scale.py                                  60 thousand, 600 thousand and 6 million rows, and 100,000 fragments
python benchmarks/scale.py --sizes 60000,600000 --fragments 0

A step is a process of its own or a stage of one build. Its memory is the sum of what the build's processes hold of their own (the
anonymous part of their PSS: pages of files, which the system takes back when it needs them, don't count), sampled ten times a second,
over that before the build's first stage; its CPU time is theirs. The two choices, `select` and `fewer`, run side by side and share both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

import _rooms  # noqa: F401

os.environ.setdefault("LANCE_LOG", "error")  # each fragment alone would warn that there is no table yet

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """name: scale
seed: 1
stages:
  raw:    {op: ingest.parquet, path: rows.parquet, id: "column:key", shard_rows: 65536}
  parts:  {op: table.split, from: raw, validation: 5%, test: 5%}
  filter: {op: filter.above, from: parts, column: noise, least: 0.1}
  select: {op: prune.by_score, from: filter.train, score: hardness, keep: 50%, hard: high, order: hardest}
  fewer:  {op: prune.random, from: filter.train, keep: 20%}
  mix:    {op: table.mix, from: {chosen: select, others: fewer}}
publish:
  splits: {train: mix.train, validation: filter.validation, test: filter.test}
"""
# There is no operator that filters by a number, so here is one, installed as anybody's would be.
OPERATOR = '''import pyarrow as pa
import pyarrow.compute as pc
from stillroom.operators import Params, Rows, row


class Above(Params):
    column: str
    least: float


@row(version=1, requires=lambda params: [params.column], adds={})
def above(batch, params: Above):
    """Drop rows whose value is less."""
    reasons = pc.if_else(pc.less(batch[params.column], params.least), pa.scalar("too little"), pa.scalar(None, pa.string()))
    return Rows(batch, reasons)
'''
STEPS = {
    "build": """
        from flows.build import build_recipe
        from flows.events import StageDone, StageStarted
        def listen(event):
            if isinstance(event, (StageStarted, StageDone)):
                tell(event.name, "begins" if isinstance(event, StageStarted) else "ends")
        build_recipe(words[1], words[0], workers=2, listener=listen)
    """,
    "verify": """
        from stillroom.stores import Store
        from storage.verify import verify
        tell("verify", "begins")
        assert verify(Store(words[0])).sound
        tell("verify", "ends")
    """,
    "open": """
        import stillroom
        stillroom.open("scale@1", words[0])
        tell("open", "begins")
        snapshot = stillroom.open("scale@1", words[0])
        tell("open", "ends")
        tell("scan", "begins")
        rows = sum(batch.num_rows for split in snapshot.splits for batch in snapshot.arrow(split, batch_size=8192))
        tell("scan", "ends")
        assert rows == sum(snapshot.splits.values())
    """,
}
CHILD = r"""
import json, os, sys, time
words = sys.argv[1:]
def tell(step, what):
    sys.stdout.write(json.dumps([step, what, time.time()]) + "\n")  # in one piece: stages tell from threads
    sys.stdout.flush()
"""
SHOWN = ("raw", "parts", "filter", "select", "fewer", "mix", "publish", "verify", "open", "scan")
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="60000,600000,6000000", help="rows, with commas between")
    parser.add_argument("--fragments", type=int, default=100_000, help="of one table, to plan, commit and open; 0 for none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.sizes:
            grown(Path(scratch), [int(size) for size in args.sizes.split(",")])
        if args.fragments:
            fragments(Path(scratch), args.fragments)
    print(f"load average {os.getloadavg()[0]:.1f}; {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, pylance {lance.__version__}")


def grown(scratch: Path, sizes: list[int]) -> None:
    """Build, verify and open at each size; print by step what it took, and what each further row took."""
    found = {size: measured(scratch / str(size), size) for size in sizes}
    spans = list(pairwise(sizes))
    few, wide = 10 * len(sizes), 14 * len(spans)
    print(f"{'':<10}{'seconds':>{few}}{'a further row: us':>{wide}}{'us of CPU':>{wide}}{'MB over the start':>{few}}")
    steps = "".join(f"{size:>10,}" for size in sizes)
    between = "".join(f"{f'{small:,}-{large:,}'.replace(',000,000', 'M').replace(',000', 'k'):>14}" for small, large in spans)
    print(f"{'rows':<10}{steps}{between}{between}{steps}")
    for step in SHOWN:
        of = {size: found[size][step] for size in sizes}
        rows = [[(of[large][part] - of[small][part]) / (large - small) * 1e6 for small, large in spans] for part in (0, 1)]
        print(
            f"{step:<10}"
            + "".join(f"{of[size][0]:>10.2f}" for size in sizes)
            + "".join(f"{value:>14.2f}" for part in rows for value in part)
            + "".join(f"{of[size][2] / 1e6:>10.0f}" for size in sizes)
        )


def measured(folder: Path, rows: int) -> dict[str, "Taken"]:
    """What each step took at a size."""
    write(folder, rows)
    found: dict[str, Taken] = {}
    for script in STEPS.values():
        found |= watched(folder, script)
    return found


def write(folder: Path, rows: int) -> None:
    """A Parquet file, the recipe, and the operator that it needs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    schema = pa.schema({"key": pa.string(), "label": pa.string(), "hardness": pa.float32(), "noise": pa.float32(), "length": pa.int32()})
    with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
        for start in range(0, rows, 65_536):
            count = min(65_536, rows - start)
            keys = [f"row-{number:09}" for number in range(start, start + count)]
            labels = np.array([f"class {number}" for number in range(10)])[rng.integers(0, 10, count)]
            numbers = [rng.random(count, np.float32), rng.random(count, np.float32), rng.integers(0, 1000, count, np.int32)]
            writer.write_batch(pa.record_batch([pa.array(keys), pa.array(labels), *map(pa.array, numbers)], schema=schema))
    (folder / "recipe.yaml").write_text(RECIPE)
    operator = folder / "site" / "scale_operators" / "filter" / "above.py"
    operator.parent.mkdir(parents=True)
    operator.write_text(OPERATOR)
    info = folder / "site" / "scale-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scale\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stillroom.operators]\nscale = scale_operators\n")


class Taken(NamedTuple):
    """What a step took: wall seconds, seconds of CPU, bytes of memory over the start."""

    seconds: float
    cpu: float
    memory: float


def watched(folder: Path, script: str) -> dict[str, Taken]:
    """Run a script; what each step took that it tells of."""
    lines = [line.removeprefix("        ") for line in script.split("\n")]
    path = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", CHILD + "\n".join(lines), str(folder / "store"), str(folder / "recipe.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    seen: list[tuple[float, int, float]] = []
    cpu: dict[int, float] = {}

    def look() -> None:
        while process.poll() is None:
            pids = list(family(process.pid))
            cpu.update((pid, seconds(pid)) for pid in pids)
            seen.append((time.time(), sum(own_bytes(pid) for pid in pids), sum(cpu.values())))
            time.sleep(0.1)

    looking = Thread(target=look)
    looking.start()
    assert process.stdout is not None
    told = [json.loads(line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"a step failed; the store is {folder / 'store'}")
    looking.join()
    begun = {step: at for step, what, at in told if what == "begins"}
    before = max((size for at, size, _ in seen if at <= min(begun.values())), default=0)
    found = {}
    for step, what, at in told:
        if what == "ends":
            during = [(size, used) for when, size, used in seen if begun[step] - 0.1 <= when <= at + 0.1] or [(before, 0.0)]
            found[step] = Taken(at - begun[step], during[-1][1] - during[0][1], max(0, max(size for size, _ in during) - before))
    return found


def family(pid: int) -> Iterator[int]:
    """A process and all that come from it."""
    yield pid
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from family(child)


def own_bytes(pid: int) -> int:
    """Bytes of memory of a process that no file backs, what it shares divided by who shares it."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def seconds(pid: int) -> float:
    """CPU time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fragments(scratch: Path, count: int) -> None:
    """Plan, commit and open a table of so many fragments."""
    from stillroom.integrity import file_facts
    from stillroom.stored import StoredTable
    from stillroom.stores import Store
    from storage.commits import commit_fragments, data_files, version_facts, write_batches

    store, schema = Store(scratch / "fragments"), pa.schema({"sample_id": pa.string(), "value": pa.int32()})

    def batches(number: int) -> Iterator[pa.RecordBatch]:
        yield pa.record_batch([pa.array([f"row-{number:09}"]), pa.array([number], pa.int32())], schema=schema)

    print(f"\na table of {count:,} fragments of a row:")
    written = clocked("write them", lambda: [text for number in range(count) for text in write_batches(store, "wide", batches(number), schema)])
    ref = clocked("commit", lambda: commit_fragments(store, "wide", schema, written, fingerprint="0" * 64))
    facts = clocked("size and BLAKE3 of all files", lambda: version_facts(store, [ref], file_facts(store, data_files("wide", written))))
    clocked("open and count", lambda: StoredTable(store, ref).rows)
    clocked("first row", lambda: StoredTable(store, ref).take([0], ["value"]))
    clocked("scan", lambda: sum(batch.num_rows for batch in StoredTable(store, ref).scan(["value"], 8192)))
    print(f"{len(facts):,} files named in the record")


def clocked(what: str, work: Callable[[], T]) -> T:
    """Print how long it took; give what came out."""
    begun = time.perf_counter()
    found = work()
    print(f"{what:<32}{time.perf_counter() - begun:>10.2f} s")
    return found


if __name__ == "__main__":
    main()
