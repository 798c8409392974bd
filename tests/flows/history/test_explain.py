"""explain on a store that was really built: rows that stayed, left, merged, were made; every way to name one."""

import re
from pathlib import Path

import polars as pl
import pytest

from flows.history.explain import explain
from flows.history.life import Explanation, Step
from stillroom.errors import InputError
from stillroom.snapshots import Snapshot
from stillroom.snapshots import open as open_snapshot
from stillroom.stored import open_table
from tasks.ingest._samples import content_id

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def first(pets) -> Snapshot:
    return open_snapshot("pets@1", pets.store)


def stage_frame(snapshot: Snapshot, name: str, removed: bool = False) -> pl.DataFrame:
    stage = next(stage for stage in snapshot.manifest["stages"] if stage["name"] == name)
    return open_table(snapshot.store, stage["removed" if removed else "table"]).frame()


def step(found: Explanation, stage: str) -> Step:
    (one,) = [step for step in found.steps if step.stage == stage]
    return one


def ways(found: Explanation) -> list[tuple[str, str]]:
    return [(step.stage, step.outcome) for step in found.steps if not step.hidden]


def test_a_row_of_the_training_split_is_followed_from_its_file_to_the_snapshot(first):
    row = first.polars("train").filter(~pl.col("synthetic").fill_null(False)).row(0, named=True)
    found = explain(first, row["sample_id"])
    assert ways(found) == [
        ("raw", "read"), ("fixed", "kept"), ("split", "kept"), ("clean", "kept"), ("scores", "kept"), ("core", "kept"), ("mixed", "kept"), ("reinforced", "kept"),
    ]  # fmt: skip
    assert (found.split, found.sources[0], found.ended) == ("train", row["source"], None)
    assert step(found, "split").added == {"split": "train"}
    assert step(found, "scores").added["el2n"] == row["el2n"]
    assert step(found, "core").decided_by == {"el2n": row["el2n"], "label": row["label_name"]}
    assert step(found, "reinforced").added == {"views": "2 views"}


def test_its_teacher_says_what_it_sees_and_in_which_view(first):
    row = first.polars("train").row(0, named=True)
    teacher = explain(first, row["sample_id"]).teacher
    assert {name for name, _ in teacher.classes} == {"cat", "dog"}
    assert sum(share for _, share in teacher.classes) == pytest.approx(1, abs=0.01)
    assert [len(view.classes) for view in teacher.views] == [2, 2]
    assert teacher.views[0].said == "as it is"
    means = {name: sum(dict(view.classes)[name] for view in teacher.views) / 2 for name in ("cat", "dog")}
    assert dict(teacher.classes) == pytest.approx(means, abs=0.01)


def test_what_learned_from_it_and_where_it_stands_is_told(first):
    row = first.polars("train").filter(~pl.col("synthetic").fill_null(False)).row(0, named=True)
    found = explain(first, row["sample_id"])
    assert [(reader.stage, reader.role) for reader in found.readers] == [("teacher", "learned from it"), ("painter", "learned from it")]
    assert [(place.snapshot, place.split) for place in found.stands] == [("pets@1", "train"), ("pets@2", "train")]
    checked = explain(first, first.polars("validation")["sample_id"][0])
    assert [(reader.stage, reader.role) for reader in checked.readers] == [("teacher", "checked on it")]
    assert ways(checked) == [("raw", "read"), ("fixed", "kept"), ("split", "kept"), ("clean", "kept")]


def test_a_row_that_was_dropped_says_where_why_and_by_which_score(first):
    gone = stage_frame(first, "core", removed=True).row(0, named=True)
    found = explain(first, gone["sample_id"])
    assert (found.split, found.ended.stage, found.ended.outcome, found.ended.reason) == (None, "core", "dropped", gone["reason"])
    assert found.ended.decided_by["el2n"] == stage_frame(first, "scores").filter(pl.col("sample_id") == gone["sample_id"])["el2n"][0]
    assert "el2n" in found.values


def test_a_near_duplicate_names_its_twin_by_source(first, pets):
    ids = {name: content_id((pets.photos / "dog" / name).read_bytes()) for name in ("01.png", "twin.png")}
    lost = stage_frame(first, "clean", removed=True).filter(pl.col("sample_id").is_in(list(ids.values())))["sample_id"].to_list()
    (gone,) = lost
    (twin,) = [(name, one) for name, one in ids.items() if one != gone]
    found = explain(first, gone)
    assert [(one.sample_id, one.source) for one in found.ended.names] == [(twin[1], f"dog/{twin[0]}")]


def test_a_rejected_file_says_what_is_wrong_with_it(first):
    found = explain(first, "dog/broken.png")
    assert [(one.stage, one.outcome) for one in found.steps] == [("raw", "rejected")]
    assert found.ended.reason.startswith("dog/broken.png: ")
    assert found.stands == []


def test_a_merged_copy_is_the_row_that_stayed(first):
    found, stayed = explain(first, "cat/copy.png"), explain(first, "cat/00.png")
    assert found.sample_id == stayed.sample_id
    assert [one.outcome for one in found.steps if one.stage == "raw"] == ["read", "merged"]
    assert sorted(found.sources) == ["cat/00.png", "cat/copy.png"]


def test_a_corrected_label_is_told_before_and_after(first):
    assert step(explain(first, "cat/02.png"), "fixed").changed == {"label": ["cat", "dog"], "label_name": ["cat", "dog"]}


def test_a_made_row_names_model_class_and_seed(first):
    row = first.polars("train").filter(pl.col("synthetic")).row(0, named=True)
    found = explain(first, row["sample_id"])
    assert (found.made.stage, found.made.model_stage, found.made.model_id, found.made.label) == ("painted", "painter", row["model_id"], row["label_name"])
    assert (found.made.settings["seed"], found.made.settings["steps"]) == (row["seed"], 2)
    assert ways(found)[0] == ("painted", "made")


def test_the_picture_itself_is_found_whatever_it_is_called(first, pets, tmp_path):
    copy = tmp_path / "downloaded.bin"
    copy.write_bytes((pets.photos / "cat" / "05.png").read_bytes())
    found = explain(first, str(copy))
    assert (found.found_by, found.sources) == ("picture", ["cat/05.png"])
    assert explain(first, str(pets.photos / "dog" / "broken.png")).ended.outcome == "rejected"


@pytest.mark.parametrize("asked", ["cat/05.png", "photos/cat/05.png", "/anywhere/photos/cat/05.png"])
def test_a_source_or_a_path_that_ends_in_it_is_enough(first, asked):
    assert explain(first, asked).sources == ["cat/05.png"]


def test_the_beginning_of_an_id_is_enough_where_it_is_one_sample(first):
    row = first.polars("test").row(0, named=True)
    found = explain(first, row["sample_id"][:14])
    assert (found.sample_id, found.found_by) == (row["sample_id"], "prefix")


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_could_be_several_samples_lists_them(first):
    with pytest.raises(InputError) as error:
        explain(first, "05.png")
    assert re.search(r"could be any of 2 samples of pets@1: \w{32} \(\w+/05.png\); \w{32} \(\w+/05.png\); give one of these ids", one_line(error))


def test_an_unknown_one_names_the_nearest_way_out(first, pets):
    with pytest.raises(InputError) as error:
        explain(first, "bird/05.png")
    assert "did you mean 'cat/05.png' or 'dog/05.png'?" in one_line(error)
    with pytest.raises(InputError) as error:
        explain(first, "zzz")
    assert re.search(r"ids look like [0-9a-f]{12}…, sources like '\w+/\w+\.png'", one_line(error))
    with pytest.raises(InputError) as error:
        explain(first, content_id((pets.photos / "dog" / "new.png").read_bytes()))
    assert "`stillroom explain pets@2 " in one_line(error)


def test_quotes_and_wildcards_in_what_is_asked_are_only_letters(first):
    for asked in ("it's", "%", "cat/0_.png", "'; DROP", "\\", ""):
        with pytest.raises(InputError):
            explain(first, asked)


def test_a_stage_whose_table_is_gone_says_so_and_the_others_answer(first):
    row = first.polars("train").filter(~pl.col("synthetic").fill_null(False)).row(0, named=True)
    manifest = {
        **first.manifest,
        "stages": [{**one, "table": {**one["table"], "version": 9999}} if one["name"] == "raw" else one for one in first.manifest["stages"]],
    }
    found = explain(Snapshot(first.store, manifest), row["sample_id"])
    assert found.steps[0].outcome == "unknown"
    assert found.split == "train"


def test_a_path_that_is_no_file_is_only_a_path(first):
    assert explain(first, str(Path("nowhere") / "cat" / "05.png")).found_by == "path"
