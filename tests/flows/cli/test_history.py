"""The commands that tell history: diff, explain and show --lineage, on two small snapshots."""

import json
import re

from stillroom.stores import Store


def test_diff_says_what_differs_and_why(stillroom, little):
    printed = stillroom("diff", "little@1", "little@2", "--store", little).stdout
    assert "little@2 has all 3 rows of little@1, 1 of them changed.\n" in printed
    assert re.search(r"raw +ingest.image_folder +path x1 → x2", printed)
    assert re.search(r"label +1 +33.3\s% +cat → dog in ab2", printed)
    assert "removed" not in printed and "drift" not in printed


def test_diff_as_json_has_everything(stillroom, little):
    found = json.loads(stillroom("diff", "little@1", "little@2", "--store", little, "--json").stdout)
    assert found["total"] == {"split": "", "before": 3, "after": 3, "same": 2, "changed": 1, "added": 0, "removed": 0, "moved_in": 0, "moved_out": 0}
    assert found["labels"] == [{"column": "label", "before": "cat", "after": "dog", "rows": 1}]
    assert found["changed"] == ["ab2"]


def test_diff_writes_a_page(stillroom, little, tmp_path):
    page = tmp_path / "diff.html"
    ended = stillroom("diff", "little@1", "little@2", "--store", little, "--html", page)
    assert ended.stdout.endswith(f"page  {page}\n")
    assert "cat → dog" in page.read_text(encoding="utf-8")


def test_a_page_that_cant_be_written_is_a_line(stillroom, little, tmp_path):
    ended = stillroom("diff", "little@1", "little@2", "--store", little, "--html", tmp_path / "nowhere" / "diff.html")
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (1, 1)
    assert "can't be written: No such file or directory" in ended.stderr


def test_a_snapshot_compared_with_itself_takes_few_words(stillroom, little):
    printed = stillroom("diff", "little@1", "little@1", "--store", little).stdout.splitlines()
    assert [line for line in printed if line][-1] == "little@1 is compared with itself."


def test_an_unknown_snapshot_is_a_line_that_names_those_there_are(stillroom, little):
    ended = stillroom("diff", "little@1", "little@9", "--store", little)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == "error: little@9: no such number; little has @1, @2\n"


def test_explain_follows_a_row_found_by_its_source(stillroom, little):
    printed = stillroom("explain", "little@2", "x/2.png", "--store", little).stdout.splitlines()
    assert printed[:2] == ["ab2  x/2.png  label dog", "in little@2, train"]
    assert re.match(r"raw +ingest.image_folder +read +x/2.png", printed[3])
    assert printed[-1] == "stands in little@1 train, little@2 train"


def test_a_row_made_of_others_names_them(stillroom, little):
    printed = stillroom("explain", "little@2", "ab2", "--store", little).stdout.splitlines()
    assert [line.split() for line in printed if line.startswith("parent ")] == [["parent", "aa1", "x/1.png"], ["parent", "zz9"]]


def test_explain_as_json_has_everything(stillroom, little):
    found = json.loads(stillroom("explain", "little@2", "aa1", "--store", little, "--json").stdout)
    assert (found["sample_id"], found["split"], found["sources"]) == ("aa1", "train", ["x/1.png"])
    assert found["stands"] == [{"snapshot": "little@1", "split": "train", "promoted": False}, {"snapshot": "little@2", "split": "train", "promoted": False}]


def test_what_could_be_two_samples_is_a_line_with_both(stillroom, little):
    ended = stillroom("explain", "little@2", "ab", "--store", little)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == "error: 'ab': could be any of 2 samples of little@2: ab2 (x/2.png); ab3 (y/2.png); give one of these ids\n"


def test_what_nobody_knows_is_a_line_with_the_way_out(stillroom, little):
    ended = stillroom("explain", "little@2", "z/2.png", "--store", little)
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (1, 1)
    assert "did you mean 'x/2.png' or 'y/2.png'?" in ended.stderr


def test_lineage_lists_the_stages_and_the_snapshot(stillroom, little):
    printed = stillroom("show", "little@2", "--lineage", "--store", little).stdout
    assert re.search(r"● +raw +ingest.image_folder 1 +3 ", printed)
    assert re.search(r"◆ +little@2 +published +raw.train, raw.test +3 ", printed)
    lines = json.loads(stillroom("show", "little@2", "--lineage", "--json", "--store", little).stdout)
    assert [(line["name"], line["inputs"]) for line in lines] == [("raw", []), ("little@2", ["raw.train", "raw.test"])]


def test_explain_says_how_many_rows_a_stage_left_out_as_forgotten(stillroom, little):
    store = Store(little)
    manifest = store.read_json("snapshots/little/2.json")
    assert "forgotten" not in stillroom("explain", "little@2", "ab2", "--store", little).stdout
    store.put_json(
        "snapshots/little/2.json", {**manifest, "stages": [{**stage, "counts": {**stage["counts"], "forgotten": 2}} for stage in manifest["stages"]]}
    )
    try:
        assert "raw left out 2 rows that were forgotten" in stillroom("explain", "little@2", "ab2", "--store", little).stdout
    finally:
        store.put_json("snapshots/little/2.json", manifest)
