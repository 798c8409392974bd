"""Two builders of one stage: with the lease one makes it; without it (one was taken for dead) both do, and it comes out right all the same."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import pytest

from flows.plan import Plan, make_plan
from stillroom.errors import StageError
from stillroom.format import prepare
from stillroom.records import Record, read_record
from stillroom.stored import StoredTable
from stillroom.stores import Store
from tasks import engine
from tasks.engine import Made, obtain_stage, run_stage
from tasks.pool import Pool

RECIPE = """name: digits
seed: 1
stages:
  raw: {op: ingest.digits}
  few: {op: table.sample, from: raw, rows: 100}
  parts: {op: table.split, from: few, validation: 20%, test: 20%}
"""


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Pool]]:
    pools = [Pool(1), Pool(1)]
    yield pools
    for pool in pools:
        pool.stop()


@pytest.fixture
def plan(recipe: Callable[[str], Path], store: Path) -> Callable[..., Plan]:
    prepare(Store(store))  # as a build does before its first stage
    return lambda *overrides: make_plan(recipe(RECIPE), store, overrides)


def both(plan: Plan, stage: str, records: dict[str, Record], pools: list[Pool], later_s: float = 0.0) -> tuple[list[Made], list[str]]:
    """What two builders get that want a stage at the same time, the second a little later, and whom they waited for."""
    (planned,) = [each for each in plan.stages if each.name == stage]
    spec = plan.spec(planned, {name: record.table for name, record in records.items()})
    made: dict[int, Made] = {}
    waited: list[str] = []

    def work(number: int) -> None:
        time.sleep(number * later_s)
        made[number] = obtain_stage(spec, pools[number], waited.append)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[0], made[1]], waited


@contextmanager
def _nothing(*args: object, **options: object) -> Iterator[None]:
    yield


def test_one_makes_the_stage_and_the_other_waits(plan, pools, store, monkeypatch):
    monkeypatch.setattr(engine, "_alone", _nothing)  # as if they were two processes
    made, waited = both(plan(), "raw", {}, pools)
    assert sorted(each.here for each in made) == [False, True]
    assert made[0].record == made[1].record
    assert len(waited) == 1
    assert len(lance.dataset(f"{store}/stages/digits.raw.lance").versions()) == 2  # the empty one, and one


def test_both_make_the_stage_and_end_with_one_record(plan, pools, store, monkeypatch):
    records = {"raw": run_stage(plan().spec(plan().stages[0], {}), pools[0])}
    monkeypatch.setattr(engine, "_alone", _nothing)
    monkeypatch.setattr(engine, "lease", _nothing)
    for rows in range(100, 112):
        changed = plan(f"few.rows={rows}")
        for stage in ("few", "parts"):
            made, _ = both(changed, stage, records, pools, later_s=0.01 * (rows % 4))
            record = read_record(Store(store), made[0].record.fingerprint)
            assert [each.record for each in made] == [record] * 2
            assert record is not None
            assert StoredTable(Store(store), record.table).frame()["sample_id"].n_unique() == rows
            for ref in filter(None, (record.table, record.removed)):
                tag = json.loads((store / f"{ref.name}.lance/_refs/tags/f-{ref.fingerprint[:32]}.json").read_text())
                assert tag["version"] == ref.version
            records[stage] = record
    assert Store(store).list("work/") == []


def test_a_builder_that_waits_ends_when_its_build_is_stopped(plan, pools, store, monkeypatch):
    planned = plan().stages[0]
    assert Store(store).create_json(f"leases/{planned.prints.table}.1.json", {"holder": {}, "beat": "", "token": "of somebody who is silent"})
    stopped, raised = Pool(1), []

    def wait() -> None:
        try:
            run_stage(plan().spec(planned, {}), stopped)
        except StageError as error:
            raised.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    stopped.stop()
    thread.join(10)
    assert raised == ["stage 'raw': the build was stopped"]
