"""diff on a store that was really built: what changed in the recipe and the data is what it says, and no more."""

import pytest

from flows.history.diff import diff
from stillroom.snapshots import open as open_snapshot
from tasks.ingest._samples import content_id

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(pets):
    return diff(open_snapshot("pets@1", pets.store), open_snapshot("pets@2", pets.store))


def test_the_causes_are_the_new_file_the_correction_and_the_parameter(found):
    causes = {line.stage: (line.status, [(one.what, one.before, one.after) for one in line.differences]) for line in found.changes.causes}
    assert causes == {"raw": ("data", []), "fixed": ("data", []), "core": ("changed", [("keep", 0.5, 0.8)])}
    assert [line.data for line in found.changes.causes] == [["path"], ["file"], []]
    assert [(one.what, one.after) for one in found.changes.settings] == [("--set", "core.keep=80%")]
    assert not found.changes.packages
    assert {line.stage for line in found.changes.stages if line.status == "follows"} >= {"split", "clean", "scores", "teacher"}


def test_the_corrected_label_and_the_new_picture_are_found(found, pets):
    assert {(line.before, line.after) for line in found.labels if line.column == "label"} <= {("cat", "dog")}
    new = content_id((pets.photos / "dog" / "new.png").read_bytes())
    snapshots = [set(open_snapshot(name, pets.store).polars(split)["sample_id"]) for name in ("pets@1", "pets@2") for split in ("train", "validation", "test")]
    before, after = set().union(*snapshots[:3]), set().union(*snapshots[3:])
    assert (found.total.added, found.total.removed) == (len(after - before), len(before - after))
    assert (new in found.added) == (new in after)
    assert found.total.moved_in == 0


def test_a_snapshot_and_itself_are_the_same_without_a_look_at_the_rows(pets):
    snapshot = open_snapshot("pets@1", pets.store)
    found = diff(snapshot, snapshot)
    assert (found.same, found.total.same, found.columns, found.drift, found.changes.causes) == (True, snapshot.manifest["rows"], [], [], [])
