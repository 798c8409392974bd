"""Takeover: what didn't change isn't worked on again, and the table is that of a build from nothing."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.plan import make_plan
from stillroom.images import encode_png
from stillroom.records import Record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage.verify import verify
from tasks.engine import run_stage
from tasks.pool import Pool

OPERATORS = {
    "ingest/listed": """
        import pyarrow as pa
        from stillroom.fields import image_field
        from stillroom.operators import Params, Unit, source

        class Listed(Params):
            rows: list[tuple[str, int]]

        @source(version=1, units=lambda params: [Unit("all")], adds={"sample_id": pa.string(), "image": image_field(), "number": pa.int64(), "note": pa.string()})
        def listed(unit, params: Listed):
            ids, numbers = [name for name, _ in params.rows], [number for _, number in params.rows]
            images = [str(number % 7).encode() for number in numbers]
            yield pa.record_batch({"sample_id": pa.array(ids, pa.string()), "image": pa.array(images, pa.binary()),
                                   "number": pa.array(numbers, pa.int64()), "note": pa.array([f"{number}!" for number in numbers], pa.string())})
    """,
    "filter/even": """
        import pyarrow as pa
        from stillroom.operators import Rows, row

        @row(version=1, requires=["number"], adds={})
        def even(batch):
            return Rows(batch, pa.array(["odd" if number % 2 else None for number in batch["number"].to_pylist()]))
    """,
    "filter/worked": """
        import os
        from pathlib import Path
        import pyarrow as pa
        from stillroom.fields import image_field
        from stillroom.operators import Params, Rows, row

        class Worked(Params):
            log: str = ""

        @row(version=1, requires=["image"], adds={"length": pa.int32(), "thumb": image_field()})
        def worked(batch, params: Worked, inputs):
            log = os.environ["WORKED_LOG"]
            images = batch["image"].to_pylist()
            Path(log, os.urandom(8).hex()).write_text("\\n".join(batch["sample_id"].to_pylist()))
            digits = [int(image) for image in images]
            batch = batch.append_column("length", pa.array([digit * 10 for digit in digits], pa.int32()))
            batch = batch.append_column("thumb", pa.array([b"t" + image for image in images], pa.binary()))
            return Rows(batch, pa.array(["zero" if digit == 0 else None for digit in digits]), pa.array(["one" if digit == 1 else None for digit in digits]))
    """,
}
Rows = list[tuple[str, int]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, installing: Callable[..., AbstractContextManager[Path]]) -> Iterator[Path]:
    """Where the operator leaves the ids that it worked on; it is installed meanwhile."""
    log = tmp_path_factory.mktemp("log")
    with installing("listing", {name: dedent(code) for name, code in OPERATORS.items()}), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKED_LOG", str(log))
        yield log


@pytest.fixture(scope="module")
def pool(log: Path) -> Iterator[Pool]:
    assert str(log)
    found = Pool(1)
    yield found
    found.close()


@pytest.fixture
def build(tmp_path_factory: pytest.TempPathFactory, pool: Pool, log: Path) -> Callable[[Rows, Path], tuple[dict[str, Record], list[str]]]:
    """Builds three stages over these rows; gives the records, and the ids that were worked on."""
    recipe = tmp_path_factory.mktemp("recipe") / "r.yaml"

    def run(rows: Rows, store: Path) -> tuple[dict[str, Record], list[str]]:
        given = [list(row) for row in rows]
        recipe.write_text(
            f"name: r\nseed: 1\nstages:\n  raw: {{op: ingest.listed, rows: {given}}}\n  sound: {{op: filter.worked, from: raw}}\n  even: {{op: filter.even, from: sound}}\n".replace(
                "'", '"'
            )
        )
        records: dict[str, Record] = {}
        for planned in make_plan(recipe, store).stages:
            spec = make_plan(recipe, store).spec(planned, {name: record.table for name, record in records.items()})
            records[planned.name] = planned.record or run_stage(spec, pool)
        worked = [line for file in log.iterdir() for line in file.read_text().split("\n") if line]
        for file in log.iterdir():
            file.unlink()
        return records, sorted(worked)

    return run


def told(store: Path, records: dict[str, Record]) -> list[object]:
    return [(record.table.digest, record.counts, left(store, record)) for record in records.values()]


def left(store: Path, record: Record) -> list[tuple[object, ...]]:
    if record.removed is None:
        return []
    return StoredTable(Store(store), record.removed).frame().rows()


def test_new_and_changed_rows_alone_are_worked_on(build, store, tmp_path):
    first = [(f"s{n}", n) for n in range(2, 30)]
    build(first, store)
    # One changed, one new at the front, one new inside, one gone; the order of others moved.
    second = [("new", 5), *first[10:], ("s3", 4), *first[2:10], ("late", 7)]
    records, worked = build(second, store)
    assert worked == ["late", "new", "s3"]
    whole, all_worked = build(second, tmp_path / "whole")
    assert len(all_worked) == len(second)
    assert told(store, records) == told(tmp_path / "whole", whole)
    table = StoredTable(Store(store), records["sound"].table)
    assert table.take([0, 1], ["sample_id", "image", "thumb"]).to_pylist()[0] == {"sample_id": "new", "image": b"5", "thumb": b"t5"}
    assert verify(Store(store)).sound


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(nights=st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), min_size=1), min_size=2, max_size=4))
def test_any_row_of_nights_ends_as_builds_from_nothing_do(build, tmp_path_factory, nights):
    folder = tmp_path_factory.mktemp("nights")
    before: dict[str, int] = {}
    seen: set[tuple[tuple[str, int], ...]] = set()
    for number, night in enumerate(nights):
        rows = sorted(night.items())
        records, worked = build(rows, folder / "store")
        changed = sorted(name for name, value in rows if name not in before or before[name] % 7 != value % 7)
        assert worked == ([] if tuple(rows) in seen else changed)
        whole, _ = build(rows, folder / str(number))
        assert told(folder / "store", records) == told(folder / str(number), whole)
        if tuple(rows) not in seen:
            before = dict(rows)
        seen.add(tuple(rows))


def test_another_parameter_takes_nothing_over(build, store, log, pool, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: r\nseed: 1\nstages:\n  raw: {op: ingest.listed, rows: [["a", 3]]}\n  sound: {op: filter.worked, from: raw}\n')
    for override in ([], ["sound.log=other"]):
        records: dict[str, Record] = {}
        plan = make_plan(recipe, store, override)
        for planned in plan.stages:
            records[planned.name] = planned.record or run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
    assert len(list(log.iterdir())) == 2
    assert [file.read_text() for file in log.iterdir()] == ["a", "a"]
    for file in log.iterdir():
        file.unlink()


def test_two_stages_of_one_operator_and_a_trial_leave_each_other_alone(store, log, pool, tmp_path):
    recipe = tmp_path / "r.yaml"
    worked = []
    for fresh, trial in ((0, None), (0, 4), (1, None)):
        sources = {name: [[f"{name}{number}", number % 7] for number in range(2, 12 + fresh)] for name in "ab"}
        lines = [
            f"  {name}: {{op: ingest.listed, rows: {json.dumps(rows)}}}\n  {name}_sound: {{op: filter.worked, from: {name}}}\n"
            for name, rows in sources.items()
        ]
        recipe.write_text("name: r\nseed: 1\nstages:\n" + "".join(lines))
        records: dict[str, Record] = {}
        plan = make_plan(recipe, store, rows=trial)
        for planned in plan.stages:
            records[planned.name] = planned.record or run_stage(plan.spec(planned, {name: record.table for name, record in records.items()}), pool)
        worked.append(sorted(line for file in log.iterdir() for line in file.read_text().split("\n")))
        for file in log.iterdir():
            file.unlink()
    assert worked[2] == ["a12", "b12"]
    assert (len(worked[0]), len(worked[1])) == (20, 8)


def test_a_folder_that_grew_reads_its_new_files_and_shares_the_others(pool, store, tmp_path):
    for number in range(60):
        picture(tmp_path, number)
    first, data = ingested(pool, store, tmp_path)
    picture(tmp_path, 60)
    picture(tmp_path, 61, of=3)  # equal to another: merged, now in a unit that was taken over
    (tmp_path / "photos/b/7.png").unlink(missing_ok=True)
    second, more = ingested(pool, store, tmp_path)
    assert 0 < len(more - data) <= 4 < len(more & data)
    whole, _ = ingested(pool, tmp_path / "whole", tmp_path)
    assert first.table.digest != second.table.digest
    assert (second.table.digest, second.counts, left(store, second)) == (whole.table.digest, whole.counts, left(tmp_path / "whole", whole))
    (tmp_path / "photos/c").mkdir()
    picture(tmp_path, 62, folder_name="c")  # another class: labels count anew
    third, anew = ingested(pool, store, tmp_path)
    assert not anew & more
    assert third.table.digest == ingested(pool, tmp_path / "third", tmp_path)[0].table.digest
    assert verify(Store(store)).sound


def picture(folder: Path, number: int, of: int | None = None, folder_name: str = "") -> None:
    path = folder / "photos" / (folder_name or "ab"[number % 2]) / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((4, 4, 1), 3 * (number if of is None else of), np.uint8)))


def ingested(pool: Pool, store: Path, folder: Path) -> tuple[Record, set[str]]:
    """Builds the ingest alone; its record and the data files of its table."""
    recipe = folder / "photos.yaml"
    recipe.write_text("name: photos\nseed: 1\nstages:\n  raw: {op: ingest.image_folder, path: photos, shard_rows: 8}\n")
    plan = make_plan(recipe, store)
    record = plan.stages[0].record or run_stage(plan.spec(plan.stages[0], {}), pool)
    return record, {key for key in record.files if "raw.lance/data/" in key}
