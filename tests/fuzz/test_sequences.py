"""Any sequence of changes, builds, deaths, gc and forget against a model of what should be there."""

import tempfile
from pathlib import Path

import lance
import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from flows.plan import make_plan
from stillroom.images import encode_png
from stillroom.snapshots import list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.forget import forget
from storage.gc import Policy, gc
from storage.tombstones import read_tombstones
from storage.verify import verify
from tasks.ingest._samples import content_id
from tests.fuzz.builds import Killed, build, dying
from tests.fuzz.mutations import examples, in_suite

RECIPE = """name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos, classes: [cat, dog], shard_rows: 3}
  fixed: {op: table.relabel, from: raw, file: fixes.csv, by: source}
  split: {op: table.split, from: fixed, validation: 0%, test: 30%}
  sound: {op: filter.decodable, from: split}
publish:
  splits: {train: sound.train, test: sound.test}
"""
LABELS = ["cat", "dog"]
# At which write a process dies; a build of this recipe makes some eighty of them, a gc or a forget fewer.
DEATH = st.none() | st.integers(1, 90)

Rows = dict[str, tuple[str, str]]


class AnyHistory(RuleBasedStateMachine):
    """A folder of photos, a recipe and a store, and beside them what should be in it.

    `photos` has the sample id of each photo in the folder by its source, `labels` the corrections, `forgotten` ids;
    `snapshots` the rows of each snapshot ever published by number: label and split by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.home = self.folder / "store"
        self.store = Store(self.home)
        self.made, self.share = 0, "30%"
        self.photos: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.pictures: dict[str, bytes] = {}
        self.forgotten: dict[str, str] = {}
        self.snapshots: dict[int, Rows] = {}
        self.withdrawn: set[int] = set()

    def teardown(self) -> None:
        if self.photos and not self.forgotten:  # what was forgotten can't be made again elsewhere
            number = self._build(None)
            build(self.folder / "pets.yaml", self.folder / "fresh", self._overrides())
            fresh = open_snapshot("pets@1", self.folder / "fresh")
            assert open_snapshot(f"pets@{number}", self.home).manifest["digest"] == fresh.manifest["digest"]
        self.temporary.cleanup()

    @initialize()
    def begins(self) -> None:
        (self.folder / "pets.yaml").write_text(RECIPE)
        for label in LABELS:
            (self.folder / "photos" / label).mkdir(parents=True)
        for _ in range(8):
            self._photo()
        self._fixes()

    @rule(count=st.integers(1, 3))
    def the_source_grows(self, count: int) -> None:
        for _ in range(count):
            self._photo()

    @precondition(lambda self: len(self.photos) > 8)
    @rule(data=st.data())
    def a_photo_goes(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(self.photos)))
        (self.folder / "photos" / source).unlink()
        del self.photos[source]
        self.labels.pop(source, None)
        self._fixes()

    @rule(data=st.data(), label=st.sampled_from(LABELS))
    def a_label_is_corrected(self, data: st.DataObject, label: str) -> None:
        self.labels[data.draw(st.sampled_from(sorted(self.photos)))] = label
        self._fixes()

    @rule(share=st.sampled_from(["30%", "50%"]))
    def a_parameter_is_changed(self, share: str) -> None:
        self.share = share

    @rule(death=DEATH)
    def a_build(self, death: int | None) -> None:
        self._build(death)

    @precondition(lambda self: self.snapshots)
    @rule(keep_last=st.sampled_from([None, 1, 2]), death=DEATH)
    def gc_goes_through(self, keep_last: int | None, death: int | None) -> None:
        standing = sorted(set(self.snapshots) - self.withdrawn)
        with dying(self.home, death):
            try:
                gc(self.store, Policy(keep_last))
            except Killed:
                self.the_store_is_sound()
        gc(self.store, Policy(keep_last))
        self.withdrawn |= set(standing[:-keep_last]) if keep_last else set()

    @precondition(lambda self: any(self._held(id_) for id_ in self.photos.values()))
    @rule(data=st.data(), death=DEATH)
    def a_photo_is_forgotten(self, data: st.DataObject, death: int | None) -> None:
        source = data.draw(st.sampled_from(sorted(source for source, id_ in self.photos.items() if self._held(id_))))
        asked = self.photos[source]
        with dying(self.home, death):
            try:
                forget(self.store, [asked], reason="asked")
            except Killed:
                self.the_store_is_sound()
        forget(self.store, [])  # finishes what was begun
        if death is not None and not read_tombstones(self.store).knows(asked):
            return  # it died before it wrote down what it was asked
        self.forgotten[asked] = source
        self.withdrawn |= {number for number, rows in self.snapshots.items() if asked in rows}
        assert self._traces(asked, source) == []

    @invariant()
    def what_was_published_stands_as_it_was(self) -> None:
        for line in list_snapshots(self.store):
            number = line["number"]
            assert line["withdrawn"] == (number in self.withdrawn), number
            if not line["withdrawn"]:
                assert self._read(number) == self.snapshots[number]
        assert {line["number"] for line in list_snapshots(self.store)} == set(self.snapshots)

    @invariant()
    def the_store_is_sound(self) -> None:
        if self.home.exists():
            # A death right after the manifest leaves no report and no tag, which the next build of the same adds.
            faults = [finding for finding in verify(self.store, narrow=False).findings if finding.is_fault and " again" not in finding.problem]
            assert faults == []

    def _build(self, death: int | None) -> int | None:
        """The number of what was published, or None if the build died."""
        expected, before = self._expected(), dict(self.snapshots)
        planned = make_plan(self.folder / "pets.yaml", self.home, self._overrides())
        with dying(self.home, death):
            try:
                built = build(self.folder / "pets.yaml", self.home, self._overrides())
                assert built.published is not None
            except Killed:
                built = None
        for line in list_snapshots(self.store):
            if line["number"] not in self.snapshots:
                assert line["number"] == max(self.snapshots, default=0) + 1
                self.snapshots[line["number"]] = self._splits(line["number"], expected)
        standing = {number: rows for number, rows in self.snapshots.items() if number not in self.withdrawn}
        if built is None:
            return None
        # What plan said is what build did.
        assert [(stage.name, stage.runs) for stage in planned.stages] == [(stage.name, stage.runs) for stage in built.plan.stages]
        assert built.ran == {stage.name for stage in planned.running}
        published = int(str(built.published.snapshot).partition("@")[2])
        assert {id_: label for id_, (label, _) in standing[published].items()} == {id_: label for id_, (label, _) in expected.items()}
        assert (published in before) == (len(before) == len(self.snapshots))
        return published

    def _splits(self, number: int, expected: Rows) -> Rows:
        """The rows of a new snapshot: those that were expected, in the splits where it has them."""
        rows = self._read(number)
        assert {id_: label for id_, (label, _) in rows.items()} == {id_: label for id_, (label, _) in expected.items()}
        return rows

    def _expected(self) -> Rows:
        """Label by id of what a build should publish now; the splits are the store's to say."""
        rows = {}
        for source, id_ in self.photos.items():
            if id_ not in self.forgotten:
                rows[id_] = (self.labels.get(source, source.partition("/")[0]), "")
        return rows

    def _read(self, number: int) -> Rows:
        frame = open_snapshot(f"pets@{number}", self.store, verify=True).table().frame(["sample_id", "label_name", "split"])
        assert frame["sample_id"].n_unique() == frame.height
        return {id_: (label, split) for id_, label, split in frame.iter_rows()}

    def _held(self, id_: str) -> bool:
        """Whether a snapshot that stands has it."""
        return id_ not in self.forgotten and any(id_ in rows for number, rows in self.snapshots.items() if number not in self.withdrawn)

    def _traces(self, id_: str, source: str) -> list[str]:
        """Files with the photo, its id or its source in them, and tables that show one of these."""
        needles = (id_.encode(), source.encode(), self.pictures[id_])
        files = [path for path in self.home.rglob("*") if path.is_file()]
        found = [str(path) for path in files if any(needle in path.read_bytes() for needle in needles)]
        for uri in self.home.rglob("*.lance"):
            for version in lance.dataset(uri).versions() if (uri / "_versions").is_dir() else []:
                values = lance.dataset(uri, version=version["version"]).to_table().to_pylist()
                found += [f"{uri}@{version['version']}" for row in values if any(value in (id_, source, self.pictures[id_]) for value in row.values())]
        return found

    def _photo(self) -> None:
        self.made += 1
        source = f"{LABELS[self.made % 2]}/photo-{self.made:03}.png"
        data = encode_png(np.random.default_rng(self.made).integers(0, 250, (5, 5, 1)).astype(np.uint8))
        (self.folder / "photos" / source).write_bytes(data)
        self.photos[source] = content_id(data)
        self.pictures[content_id(data)] = data

    def _fixes(self) -> None:
        (self.folder / "fixes.csv").write_text("source,label_name\n" + "".join(f"{source},{label}\n" for source, label in sorted(self.labels.items())))

    def _overrides(self) -> list[str]:
        return [f"split.test={self.share}"]


def test_any_history_leaves_what_the_model_says():
    # Not made smaller, which would take minutes: a history of ten steps can be read as it is.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    run_state_machine_as_test(
        AnyHistory, settings=settings(max_examples=examples(5), derandomize=in_suite(), stateful_step_count=10, deadline=None, phases=phases)
    )
