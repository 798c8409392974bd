"""The engine on operators of a third party, over real workers: rows accounted for, faults in one line, lost workers, resumed stages, heavy columns.

Recipes are planned as a build plans them, and their stages run one after another without Prefect.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent
from typing import Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from flows.plan import make_plan
from stillroom.errors import StageError, StillroomError, StoreError
from stillroom.records import Record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from tasks.engine import partitions, run_stage
from tasks.pool import Pool

# What every operator of the package needs; `folder` is where it leaves a file for each call.
HEAD = """
import os, signal
from pathlib import Path
import polars as pl
import pyarrow as pa
from stillroom.fields import image_field, label_field, vector_field
from stillroom.operators import Params, Rows, Unit, row, score, select, source

def called(folder, what):
    Path(folder, f"call-{what}-{os.urandom(4).hex()}").touch()

class Folder(Params):
    folder: str = ""
"""

OPERATORS = {
    "ingest/given": """
        class Given(Params):
            units: list[list[list[str | int | None]]]

        def names(params):
            return [Unit(str(number), value=rows) for number, rows in enumerate(params.units)]

        @source(version=1, units=names, adds={"sample_id": pa.string(), "image": image_field(), "label": label_field(["a", "b"]), "split": pa.string(), "source": pa.string()})
        def given(unit, params: Given, schema):
            for number, (sample_id, label, split, text) in enumerate(unit.value):
                row = {"sample_id": sample_id, "image": text.encode(), "label": label, "split": split, "source": f"{unit.name}/{number}"}
                reason = "broken file" if text == "broken" else None
                names = [field.name for field in schema if field.name in row]
                batch = pa.record_batch([pa.array([row[name]], schema.field(name).type) for name in names], schema=pa.schema([schema.field(name) for name in names]))
                yield Rows(batch, rejected=pa.array([reason], pa.string()))
    """,
    "ingest/many": """
        class Many(Params):
            rows: int
            size_bytes: int = 20

        def parts(params):
            return [Unit(f"from-{start}", start, min(start + 400, params.rows)) for start in range(0, params.rows, 400)]

        @source(version=1, units=parts, adds={"sample_id": pa.string(), "image": image_field(), "split": pa.string()})
        def many(unit, params: Many):
            numbers = range(unit.start, unit.stop)
            yield pa.record_batch({
                "sample_id": [f"{number:05}" for number in numbers],
                "image": pa.array([f"{number:05}".encode() * (params.size_bytes // 5) for number in numbers], pa.binary()),
                "split": [("train", "test")[number % 2] for number in numbers],
            })
    """,
    "filter/one_broken": """
        class OneBroken(Folder):
            sample_id: str

        @row(version=1, requires=["image"], adds={"length": pa.int32()})
        def one_broken(batch, params: OneBroken):
            ids = batch["sample_id"].to_pylist()
            lengths = pa.array([len(value) for value in batch["image"].to_pylist()], pa.int32())
            reasons = pa.array(["unreadable" if each == params.sample_id else None for each in ids], pa.string())
            return Rows(batch.append_column("length", lengths), rejected=reasons)
    """,
    "filter/loses": """
        @row(version=1, adds={})
        def loses(batch):
            return Rows(batch.slice(1))
    """,
    "filter/forgets": """
        @select(version=1)
        def forgets(frames):
            return pl.DataFrame({"reason": [None] * (frames["samples"].height - 1)}, schema={"reason": pl.String})
    """,
    "filter/miscounts": """
        @select(version=1)
        def miscounts(frames):
            rows = frames["samples"].height
            return pl.DataFrame({"row": range(1, rows + 1), "reason": [None] * rows}, schema={"row": pl.Int64, "reason": pl.String})
    """,
    "filter/raises": """
        class Odd(Exception):
            def __init__(self, first, *, second):
                super().__init__(f"{first} and {second}")

        class Raises(Folder):
            what: str

        @row(version=1, adds={})
        def raises(batch, params: Raises):
            called(params.folder, "raises")
            raise {"plain": LookupError("no such thing"), "odd": Odd("one", second="two"), "exit": SystemExit(3)}[params.what]
    """,
    "filter/refuses": """
        from stillroom.errors import StageError

        @row(version=1, adds={})
        def refuses(batch):
            raise StageError("filter.refuses", "the rows are too blue", "paint them")
    """,
    "filter/dies_once": """
        @row(version=1, adds={"doubled": pa.string()})
        def dies_once(batch, params: Folder):
            called(params.folder, "dies_once")
            if "00700" in batch["sample_id"].to_pylist() and not Path(params.folder, "died").exists():
                Path(params.folder, "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return Rows(batch.append_column("doubled", pa.array([each * 2 for each in batch["sample_id"].to_pylist()])))
    """,
    "filter/dies": """
        @row(version=1, adds={})
        def dies(batch):
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    "filter/mendable": """
        @row(version=1, adds={"seen": pa.bool_()})
        def mendable(batch, params: Folder):
            ids = batch["sample_id"].to_pylist()
            called(params.folder, ids[0])
            if "00999" in ids and not Path(params.folder, "mended").exists():
                raise LookupError("the last row is not mended")
            return Rows(batch.append_column("seen", pa.array([True] * len(ids))))
    """,
    "filter/mistyped": """
        @row(version=1, adds={"length": pa.int32()})
        def mistyped(batch):
            return Rows(batch.append_column("length", pa.array(["7"] * batch.num_rows)))
    """,
    "filter/silent": """
        @row(version=1, adds={"length": pa.int32()})
        def silent(batch):
            return Rows(batch)
    """,
    "filter/repaints": """
        @row(version=1, requires=["image"], adds={"image": image_field()}, keeps_rows=True)
        def repaints(batch):
            return Rows(batch.set_column(batch.schema.get_field_index("image"), "image", pa.array([value[::-1] for value in batch["image"].to_pylist()], pa.binary())))
    """,
    "filter/stamped": """
        @row(version=1, adds={"stamp": pa.string()}, keeps_rows=True)
        def stamped(batch):
            return Rows(batch.append_column("stamp", batch["sample_id"]))
    """,
    "score/length": """
        class Length(Folder):
            twice: bool = False

        @score(version=1, requires=["image"], adds={"length": pa.float32(), "embedding": vector_field("embedding", 2)}, units=lambda: [Unit("all")])
        def length(unit, inputs, params: Length):
            called(params.folder, "length")
            for batch in inputs["samples"].scan(["sample_id", "image"], 100):
                sizes = [float(len(value)) for value in batch["image"].to_pylist()]
                vectors = pa.array([[size, float(value[4] - 48)] for size, value in zip(sizes, batch["image"].to_pylist())], pa.list_(pa.float32(), 2))
                scored = pa.record_batch({"sample_id": batch["sample_id"], "length": pa.array(sizes, pa.float32()), "embedding": vectors})
                yield scored
                if params.twice:
                    yield scored
    """,
}  # fmt: skip

Recipe = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def _tiny_package(installing: Callable[..., AbstractContextManager[Path]]) -> Iterator[None]:
    """A distribution `tiny` with those operators."""
    with installing("tiny", {name: HEAD + dedent(body) for name, body in OPERATORS.items()}):
        yield


@pytest.fixture(scope="module")
def pool(_tiny_package: None) -> Iterator[Pool]:
    found = Pool(2)
    yield found
    found.close()


@pytest.fixture
def build(recipe: Recipe, store: Path, pool: Pool) -> Callable[..., dict[str, Record]]:
    """Runs the stages of a recipe one after another; a stage that the store has isn't run."""

    def run(stages: str, *overrides: str) -> dict[str, Record]:
        plan = make_plan(recipe(f"name: tiny\nseed: 1\nstages:\n{stages}"), store, overrides)
        records: dict[str, Record] = {}
        for planned in plan.stages:
            records[planned.name] = planned.record or run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
        return records

    return run


def frame(store: Path, record: Record) -> pl.DataFrame:
    return StoredTable(Store(store), record.table).frame()


def removed(store: Path, record: Record) -> list[tuple[Any, ...]]:
    assert record.removed is not None
    return StoredTable(Store(store), record.removed).frame().select("sample_id", "source", "reason", "kind").sort("sample_id", "source").rows()


def images(store: Path, record: Record, split: str | None = None) -> list[bytes]:
    table = StoredTable(Store(store), record.table if split is None else type(record.table)(**(vars(record.table) | {"split": split})))
    return table.take(np.arange(table.rows), ["image"])["image"].to_pylist()


def stored_columns(store: Path, record: Record) -> list[str]:
    return lance.dataset(f"{store}/{record.table.name}.lance", version=record.table.version).schema.names


def calls(folder: Path) -> int:
    return len(list(folder.glob("call-*")))


def one_line(error: pytest.ExceptionInfo[StillroomError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Accounting


def test_one_broken_row_of_a_thousand_leaves_alone(build, store):
    record = build("  raw: {op: ingest.many, rows: 1000}\n  sound: {op: filter.one_broken, from: raw, sample_id: '00500'}")["sound"]
    assert {name: record.counts[name] for name in ("in", "out", "dropped", "rejected")} == {"in": 1000, "out": 999, "dropped": 0, "rejected": 1}
    assert removed(store, record) == [("00500", None, "unreadable", "rejected")]
    assert frame(store, record)["sample_id"].to_list() == [f"{number:05}" for number in range(1000) if number != 500]


@pytest.mark.parametrize("rows", [0, 1, 256, 257, 1000, 40_000, 1_100_000])
def test_partitions_are_gapless_and_depend_on_the_rows_alone(rows):
    bounds = partitions(rows)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))
    assert len(bounds) <= 256


@pytest.mark.parametrize(
    ("op", "told"),
    [
        ("filter.loses", "stage 'bad': operator 'filter.loses' gave 255 rows for 256; an operator must give every row back, with a reason where it leaves"),
        (
            "filter.forgets",
            "stage 'bad': operator 'filter.forgets' accounted for {'samples': 599} of {'samples': 600} rows; an operator must give a line for every row",
        ),
        ("filter.miscounts", "stage 'bad': operator 'filter.miscounts' names rows that input 'samples' hasn't; rows count from 0 to 599"),
    ],
)
def test_an_operator_that_loses_rows_is_refused(build, op, told):
    with pytest.raises(StageError) as error:
        build(f"  raw: {{op: ingest.many, rows: 600}}\n  bad: {{op: {op}, from: raw}}")
    assert one_line(error) == told


def test_a_score_that_gives_a_row_twice_is_refused(build, tmp_path):
    with pytest.raises(StageError) as error:
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: score.length, from: raw, twice: true}", f"bad.folder={tmp_path}")
    assert one_line(error) == "stage 'bad': operator 'score.length' scored 20 rows of 10; a score must give each row of its input exactly once"


@pytest.mark.parametrize(
    ("op", "told"),
    [
        ("filter.mistyped", "stage 'bad': column 'length' is string, but int32 is declared"),
        ("filter.silent", "stage 'bad': operator 'filter.silent' gave no column 'length', which it declares"),
    ],
)
def test_a_column_that_is_not_as_declared_is_one_line(build, op, told):
    with pytest.raises(StageError) as error:
        build(f"  raw: {{op: ingest.many, rows: 10}}\n  bad: {{op: {op}, from: raw}}")
    assert one_line(error) == told


# Sources


def test_equal_rows_of_a_source_are_merged_and_the_test_row_stays(build, store):
    units = [
        [["x", 0, "train", "1"], ["y", 1, "validation", "2"], ["z", 0, None, "3"]],
        [["x", 0, "test", "1"], ["y", 1, "train", "2"], ["w", 1, "train", "broken"]],
    ]
    record = build(f"  raw: {{op: ingest.given, units: {units}}}".replace("None", "null"))["raw"]
    assert frame(store, record).select("sample_id", "split").rows() == [("y", "validation"), ("z", None), ("x", "test")]
    assert removed(store, record) == [
        ("w", "1/2", "broken file", "rejected"),
        ("x", "0/0", "equal to 1/0", "merged"),
        ("y", "1/1", "equal to 0/1", "merged"),
    ]  # fmt: skip
    assert {name: record.counts[name] for name in ("planned", "out", "merged", "rejected")} == {"planned": 6, "out": 3, "merged": 2, "rejected": 1}


def test_equal_rows_under_two_labels_are_rejected(build, store):
    units = [[["x", 0, "train", "1"], ["z", 1, "train", "3"]], [["x", 1, "train", "1"]]]
    record = build(f"  raw: {{op: ingest.given, units: {units}}}")["raw"]
    assert frame(store, record)["sample_id"].to_list() == ["z"]
    assert removed(store, record) == [("x", place, "equal content under two labels (0 and 1)", "rejected") for place in ("0/0", "1/0")]


def test_a_source_without_a_unit_is_an_empty_table(build):
    record = build("  raw: {op: ingest.many, rows: 0}")["raw"]
    assert record.table.rows == 0


def test_a_build_stopped_while_it_merged_goes_on(build, store, monkeypatch):
    stage = f"  raw: {{op: ingest.given, units: {[[['x', 0, 'train', '1'], ['x', 0, 'train', '1']], [['y', 1, 'train', '2']]]}}}"
    with monkeypatch.context() as patch:
        patch.setattr("tasks.engine._record", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(stage)
    record = build(stage)["raw"]
    assert (record.table.rows, record.counts["merged"]) == (2, 1)


# Workers


def test_an_operators_own_error_comes_out_as_itself_and_once(build, tmp_path):
    with pytest.raises(LookupError, match="no such thing"):
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: filter.raises, from: raw, what: plain}", f"bad.folder={tmp_path}")
    assert calls(tmp_path) == 1


def test_an_operators_refusal_names_the_stage(build):
    with pytest.raises(StageError) as error:
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: filter.refuses, from: raw}")
    assert one_line(error) == "stage 'bad': the rows are too blue; paint them"


def test_an_error_that_does_not_pickle_still_says_what_it_was(build, tmp_path):
    with pytest.raises(RuntimeError, match="Odd: one and two"):
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: filter.raises, from: raw, what: odd}", f"bad.folder={tmp_path}")
    assert calls(tmp_path) == 1


def test_an_operator_that_exits_ends_no_build_silently(build, tmp_path):
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: filter.raises, from: raw, what: exit}", f"bad.folder={tmp_path}")


def test_a_killed_workers_work_is_done_again(build, store, tmp_path):
    stages = "  raw: {op: ingest.many, rows: 1000}\n  doubled: {op: filter.dies_once, from: raw}"
    record = build(stages, f"doubled.folder={tmp_path}")["doubled"]
    assert (tmp_path / "died").exists()
    assert frame(store, record)["doubled"].to_list() == [f"{number:05}" * 2 for number in range(1000)]


def test_work_that_kills_its_worker_every_time_is_given_up(build):
    with pytest.raises(StageError) as error:
        build("  raw: {op: ingest.many, rows: 10}\n  bad: {op: filter.dies, from: raw, run: {retries: 1}}")
    assert one_line(error).startswith("stage 'bad': a worker process died 2 times over the same work")


def test_a_listener_that_fails_stops_nothing(pool, recipe, store):
    def fail(*message: Any) -> None:
        raise ConnectionError("the server is gone")

    failing = Pool(1, fail)
    try:
        plan = make_plan(recipe("name: tiny\nstages:\n  raw: {op: ingest.many, rows: 300}\n  seen: {op: filter.stamped, from: raw}"), store)
        raw = run_stage(plan.spec(plan.stages[0], {}), failing)
        assert run_stage(plan.spec(plan.stages[1], {"raw": raw.table}), failing).table.rows == 300
        assert failing._listener.is_alive()
    finally:
        failing.close()


INTERRUPTED = """
import os, signal, threading, time
from tasks.pool import Job, Pool

if __name__ == "__main__":
    pool = Pool(2)
    pool.run([Job(time.sleep, (0.1,)), Job(time.sleep, (0.1,))], stage="short")
    threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()
    started = time.monotonic()
    try:
        pool.run([Job(time.sleep, (60,))], stage="long")
    except KeyboardInterrupt:
        pool.close()
        print("closed" if time.monotonic() - started < 20 else "late")
"""


def test_an_interrupt_ends_busy_workers_and_no_worker_complains(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, start_new_session=True, timeout=100)
    assert (ran.stdout, ran.stderr) == ("closed\n", "")


# Resuming


def test_a_resumed_stage_takes_finished_partitions_over(build, store, tmp_path):
    stages = "  raw: {op: ingest.many, rows: 1000}\n  seen: {op: filter.mendable, from: raw}"
    with pytest.raises(LookupError):
        build(stages, f"seen.folder={tmp_path}")
    first = calls(tmp_path)
    assert len(list(store.glob("work/*/*.json"))) == 3
    (tmp_path / "mended").touch()
    record = build(stages, f"seen.folder={tmp_path}")["seen"]
    assert (first, calls(tmp_path)) == (4, 5)
    assert frame(store, record)["sample_id"].to_list() == [f"{number:05}" for number in range(1000)]
    assert not list(store.glob("work/**/*.json"))


def test_a_partition_whose_file_is_gone_is_made_again(build, store, tmp_path):
    stages = "  raw: {op: ingest.many, rows: 1000}\n  seen: {op: filter.mendable, from: raw}"
    with pytest.raises(LookupError):
        build(stages, f"seen.folder={tmp_path}")
    next((store / "stages" / "tiny.seen.lance" / "data").glob("*.lance")).unlink()
    (tmp_path / "mended").touch()
    record = build(stages, f"seen.folder={tmp_path}")["seen"]
    assert calls(tmp_path) == 6
    assert frame(store, record).height == 1000


def test_two_equal_stages_at_the_same_time_are_made_once(recipe, store, pool, tmp_path):
    text = f"""name: tiny
stages:
  raw: {{op: ingest.many, rows: 300}}
  one: {{op: score.length, from: raw, folder: {tmp_path}}}
  two: {{op: score.length, from: raw, folder: {tmp_path}}}
  stamped: {{op: filter.stamped, from: raw}}
  three: {{op: score.length, from: stamped, folder: {tmp_path}}}
"""
    plan = make_plan(recipe(text), store)
    stages = {stage.name: stage for stage in plan.stages}
    records = {"raw": run_stage(plan.spec(stages["raw"], {}), pool)}
    tables = {"raw": records["raw"].table, "stamped": run_stage(plan.spec(stages["stamped"], {"raw": records["raw"].table}), pool).table}
    start = threading.Barrier(3)

    def run(name: str) -> Record:
        start.wait()
        return run_stage(plan.spec(stages[name], tables), pool)

    with ThreadPoolExecutor(3) as threads:
        one, two, three = threads.map(run, ("one", "two", "three"))
    assert one == two
    assert one.columns["length"] == three.columns["length"]
    assert calls(tmp_path) == 1


# Heavy columns


HEAVY = """  raw: {op: ingest.many, rows: 600, size_bytes: 2000}
  scored: {op: score.length, from: raw}
  sound: {op: filter.one_broken, from: scored.test, sample_id: '00501'}
  turned: {op: filter.repaints, from: sound}
  last: {op: filter.stamped, from: turned}
"""


def test_heavy_values_are_stored_once_and_read_everywhere(build, store, tmp_path):
    records = build(HEAVY, f"scored.folder={tmp_path}", f"sound.folder={tmp_path}")
    assert {name: [column for column in stored_columns(store, record) if "image" in column or "embedding" in column] for name, record in records.items()} == {
        "raw": ["image", "image_hash"],
        "scored": ["image_at", "image_hash", "embedding_at", "embedding_hash"],
        "sound": ["image_at", "image_hash", "embedding_at", "embedding_hash"],
        "turned": ["image", "image_hash", "embedding_at", "embedding_hash"],
        "last": ["image_at", "image_hash", "embedding_at", "embedding_hash"],
    }
    size = {name: sum(file.stat().st_size for file in (store / f"{record.table.name}.lance").rglob("*") if file.is_file()) for name, record in records.items()}
    assert size["raw"] > 600 * 2000 > 299 * 2000 + 60_000 > size["turned"] > 299 * 2000
    assert max(size["scored"], size["sound"], size["last"]) < 100_000
    expected = [f"{number:05}".encode() * 400 for number in range(1, 600, 2) if number != 501]
    assert images(store, records["sound"]) == expected
    assert images(store, records["last"]) == images(store, records["turned"]) == [value[::-1] for value in expected]
    vectors = StoredTable(Store(store), records["last"].table).vectors("embedding")
    assert vectors.tolist() == [[2000.0, float(number % 10)] for number in range(1, 600, 2) if number != 501]


def test_a_changed_image_changes_its_hash_and_a_carried_one_keeps_it(build, store, tmp_path):
    records = build(HEAVY, f"scored.folder={tmp_path}", f"sound.folder={tmp_path}")
    digests = {name: frame(store, record).filter(pl.col("sample_id") == "00003")["image_hash"].item() for name, record in records.items()}
    assert digests["raw"] == digests["scored"] == digests["sound"] != digests["turned"] == digests["last"]


def test_a_heavy_value_whose_record_is_gone_is_one_line(build, store, tmp_path):
    records = build(HEAVY, f"scored.folder={tmp_path}", f"sound.folder={tmp_path}")
    (store / "records" / f"{records['raw'].fingerprint}.json").unlink()
    with pytest.raises(StoreError, match=r"its column 'image' is stored in 'stages/tiny.raw', whose record .* is missing"):
        images(store, records["sound"])


def test_a_new_column_upstream_scores_nothing_again(build, store, tmp_path):
    before = build("  raw: {op: ingest.many, rows: 300}\n  scored: {op: score.length, from: raw}", f"scored.folder={tmp_path}")["scored"]
    after = build(
        "  raw: {op: ingest.many, rows: 300}\n  more: {op: filter.stamped, from: raw}\n  scored: {op: score.length, from: more}", f"scored.folder={tmp_path}"
    )["scored"]
    assert calls(tmp_path) == 1
    assert before.fingerprint != after.fingerprint
    assert after.columns["length"] == before.columns["length"]
    assert frame(store, after)["stamp"].to_list() == [f"{number:05}" for number in range(300)]


def test_the_declared_schema_is_the_written_one(recipe, build, store, tmp_path):
    records = build(HEAVY, f"scored.folder={tmp_path}", f"sound.folder={tmp_path}")
    plan = make_plan(recipe("name: tiny\nseed: 1\nstages:\n" + HEAVY), store)
    for planned in plan.stages:
        written = StoredTable(Store(store), records[planned.name].table).schema
        assert pa.schema(written).equals(planned.resolved.schema, check_metadata=True), planned.name
