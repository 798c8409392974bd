"""gc against a model: after any history of stages, runs, snapshots, crashes and gc, just what the model keeps is there, whole."""

import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from stillroom.digests import json_digest
from stillroom.format import prepare
from stillroom.records import Record, read_record
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import StoredTable
from stillroom.stores import Store
from storage import manifests, sweep
from storage.commits import commit_fragments, version_facts, write_batches
from storage.gc import Policy, gc
from storage.records import put_record
from storage.tally import Tally, checked_tally
from storage.verify import verify

X = pa.schema([("sample_id", pa.string()), ("x", pa.int64())])


class Killed(BaseException):
    """As a process ends that gets no word in any more."""


class AnyStore(RuleBasedStateMachine):
    """One store, and beside it what should be there.

    `stages` has the parent of each stage that the store should have, by fingerprint; `snapshots` the stages of each
    snapshot, by number; `last_run` the stages of the latest run.
    """

    publish = staticmethod(lambda *args, **more: None)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store, self.count, self.runs = Store(self.folder.name), 0, 0
        self.stages: dict[str, str | None] = {}
        self.values: dict[str, int] = {}
        self.snapshots: dict[int, list[str]] = {}
        self.withdrawn: set[int] = set()
        self.promoted: list[int] = []
        self.last_run: list[str] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(
        parents=st.lists(st.integers(0, 3), min_size=4, max_size=4), made_of=st.lists(st.integers(0, 3), min_size=4, max_size=4), promoted=st.integers(0, 4)
    )
    def begins(self, parents: list[int], made_of: list[int], promoted: int) -> None:
        """Four stages, some of which refer to earlier ones; a snapshot of one stage each; perhaps one of them promoted."""
        prepare(self.store)
        for parent in parents:
            self.count += 1
            self._make({"n": self.count}, "stages/pets.a", [None, *self.stages][parent] if parent <= len(self.stages) else None)
        for stage in made_of:
            self._publish([list(self.stages)[stage]])
        if promoted:
            self._promote(promoted)

    @rule(data=st.data(), table=st.sampled_from(["stages/pets.a", "stages/pets.b"]))
    def a_stage_is_made(self, data: st.DataObject, table: str) -> None:
        self.count += 1
        self._make({"n": self.count}, table, data.draw(st.sampled_from([None, *sorted(self.stages)])))

    def _make(self, parts: dict, table: str, parent: str | None) -> None:
        """Write a stage as the engine does; its table refers into its parent's."""
        tally, fingerprint = Tally(X), json_digest(parts)
        fragments = write_batches(self.store, table, tally.watch([pa.record_batch([["a"], [parts["n"]]], schema=X)]), X)
        ref = commit_fragments(self.store, table, X, fragments, fingerprint=fingerprint)
        counted = checked_tally(StoredTable(self.store, ref), [tally.as_json()])
        origins = [f"stages/of.any/{parent}"] if parent else []
        facts = version_facts(self.store, [ref], {})
        record = Record(fingerprint, "a", "op", parts, replace(ref, digest=counted["digest"]), None, {}, counted["columns"], facts, origins)
        put_record(self.store, record, counted["leaves"])
        self.stages[fingerprint], self.values[fingerprint] = parent, parts["n"]

    @rule()
    def a_build_is_killed(self) -> None:
        fragments = write_batches(self.store, "stages/pets.a", [pa.record_batch([["a"], [-1]], schema=X)], X)
        self.count += 1
        if self.count % 2:
            commit_fragments(self.store, "stages/pets.a", X, fragments, fingerprint=json_digest(self.count))
        self.store.put_json(f"work/{json_digest(self.count)}/0-1.json", {"files": {}})

    @precondition(lambda self: self.stages)
    @rule(data=st.data())
    def a_run_ends(self, data: st.DataObject) -> None:
        self.last_run = data.draw(st.lists(st.sampled_from(sorted(self.stages)), min_size=1, max_size=2, unique=True))
        self.runs += 1
        run = {"id": f"{self.runs:06}", "recipe": "pets", "command": "stillroom build", "state": "Completed", "started": datetime.now(UTC).isoformat()}
        self.store.put_json(f"runs/{self.runs:06}.json", {**run, "fingerprints": {str(at): one for at, one in enumerate(self.last_run)}})

    @precondition(lambda self: self.stages)
    @rule(data=st.data())
    def a_snapshot_is_published(self, data: st.DataObject) -> None:
        self._publish(data.draw(st.lists(st.sampled_from(sorted(self.stages)), min_size=1, max_size=2, unique=True)))

    def _publish(self, made_of: list[str]) -> None:
        self.count += 1
        table = pa.table({"sample_id": ["a"], "label": [self.count], "split": ["train"]})
        rest = {"op": "filter.decodable", "shape": "row", "gives": "samples", "hidden": False, "inputs": {}, "removed": None}
        lines = []
        for at, fingerprint in enumerate(made_of):
            record = read_record(self.store, fingerprint)
            assert record is not None
            lines.append({"name": str(at), "fingerprint": fingerprint, "table": asdict(record.table), **rest})
        number = self.publish(self.store.uri, table, stages=lines).manifest["number"]
        self.snapshots[number], self.values[str(number)] = made_of, self.count

    @precondition(lambda self: set(self.snapshots) - self.withdrawn)
    @rule(data=st.data())
    def a_snapshot_is_promoted(self, data: st.DataObject) -> None:
        self._promote(data.draw(st.sampled_from(sorted(set(self.snapshots) - self.withdrawn))))

    def _promote(self, number: int) -> None:
        manifests.promote(self.store, "pets", number, "better")
        self.promoted.append(number)

    @rule(keep_last=st.sampled_from([None, 0, 1, 2]), survives=st.sampled_from([None, 0, 1, 3, 8]))
    def gc_goes_through(self, keep_last: int | None, survives: int | None) -> None:
        """Perhaps killed after so many deletions, and then run again."""
        planned = gc(self.store, Policy(keep_last), dry_run=True)
        self._expect(keep_last)
        if survives is not None:
            self._killed_after(survives, keep_last)
        report = gc(self.store, Policy(keep_last))
        assert survives is not None or report.removed == planned.removed
        assert gc(self.store, Policy(keep_last)).removed == [] and verify(self.store, narrow=False).findings == []

    def _killed_after(self, survives: int, keep_last: int | None) -> None:
        remove, left = sweep._remove, [survives]

        def removes_some(store, keys):
            if not left[0]:
                raise Killed
            left[0] -= 1
            remove(store, keys)

        sweep._remove = removes_some
        try:
            gc(self.store, Policy(keep_last))
        except Killed:
            assert verify(self.store, narrow=False).sound
        finally:
            sweep._remove = remove

    def _expect(self, keep_last: int | None) -> None:
        standing = sorted(set(self.snapshots) - self.withdrawn)
        if keep_last is not None:
            stands_promoted = [number for number in self.promoted if number in standing][-2:]
            kept = {*standing[len(standing) - min(keep_last, len(standing)) :], *stands_promoted}
            self.withdrawn |= set(standing) - kept
        gone = [set(self.snapshots[number]) for number in self.withdrawn]
        roots = {one for number, made_of in self.snapshots.items() if number not in self.withdrawn for one in made_of}
        if not any(made_of >= set(self.last_run) for made_of in gone):
            roots |= set(self.last_run)
        needed: set[str] = set()
        while roots:
            one = roots.pop()
            if one in self.stages and one not in needed:
                needed.add(one)
                roots |= {parent} if (parent := self.stages[one]) else set()
        self.stages = {one: parent for one, parent in self.stages.items() if one in needed}

    @invariant()
    def what_should_be_there_is_there_and_whole(self) -> None:
        for fingerprint in self.stages:
            record = read_record(self.store, fingerprint)
            assert record is not None and StoredTable(self.store, record.table).frame()["x"].item() == self.values[fingerprint]
        assert len([key for key in self.store.list("records/") if key.endswith(".json")]) == len(self.stages)
        for number in set(self.snapshots) - self.withdrawn:
            assert open_snapshot(f"pets@{number}", self.store, verify=True).table("train").frame()["label"].item() == self.values[str(number)]


def test_gc_keeps_what_the_model_keeps(publish):
    AnyStore.publish = staticmethod(publish)
    run_state_machine_as_test(AnyStore, settings=settings(settings.default, stateful_step_count=8))
