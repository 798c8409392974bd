"""stillroom export and import, as one types them."""

import json

import pyarrow.parquet as pq
import pytest

from stillroom.snapshots import open as open_snapshot


def test_export_makes_a_folder_and_says_what_is_in_it(stillroom, tiny, tmp_path):
    ended = stillroom("export", "pets@1", tmp_path / "out", "--as", "parquet", "--rows-per-file", "3", "--store", tiny)
    assert (ended.exit_code, ended.stdout) == (0, f"{tmp_path}/out\n")
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "stillroom.json")
    assert ended.stderr == f"pets@1 as parquet: 4 train, 2 test; 3 files, {size:,} bytes\n"
    assert pq.read_table(tmp_path / "out/data/test-00000-of-00001.parquet")["sample_id"].to_pylist() == ["4", "5"]
    again = stillroom("export", "pets@1", tmp_path / "out", "--rows-per-file", "3", "--store", tiny)
    assert again.stderr.endswith(" bytes, 3 of them there already\n")


def test_export_json_is_for_programs(stillroom, tiny):
    ended = stillroom("export", "pets@1", "out", "--as", "webdataset", "--split", "test", "--store", tiny, "--json")
    told = json.loads(ended.stdout)
    assert (told["snapshot"], told["form"], told["splits"], told["files"], told["taken_over"]) == ("pets@1", "webdataset", {"test": 2}, 1, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pets@1", "s3://bucket/out"], "error: s3://bucket/out: an export goes to a folder; copy that to the bucket afterwards\n"),
        (["pets@7", "out"], "error: pets@7: no such number; pets has @1\n"),
        (["pets@1", "out", "--split", "validation"], "error: pets@1: split 'validation': no such split; it has train, test\n"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(stillroom, tiny, words, said):
    ended = stillroom("export", *words, "--store", tiny)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (1, "", said)


def test_import_makes_it_a_snapshot_of_another_store(stillroom, tiny, tmp_path):
    stillroom("export", "pets@1", "out", "--store", tiny)
    ended = stillroom("import", "out", "--store", tmp_path / "other")
    digest = open_snapshot("pets@1", tiny).manifest["digest"]
    assert (ended.exit_code, ended.stdout) == (0, "pets@1\n")
    assert ended.stderr == f"pets@1 is here as pets@1: 4 train, 2 test, digest {digest[:12]}\n"
    assert open_snapshot("pets@1", tmp_path / "other").manifest["digest"] == digest
    again = stillroom("import", "out", "--store", tmp_path / "other", "--json")
    assert json.loads(again.stdout) == {"snapshot": "pets@1", "origin": "pets@1", "digest": digest, "splits": {"train": 4, "test": 2}, "same": True}


def test_a_damaged_export_is_one_clear_line(stillroom, tiny, tmp_path):
    stillroom("export", "pets@1", "out", "--store", tiny)
    (tmp_path / "cwd/out/data/test-00000-of-00001.parquet").unlink()
    ended = stillroom("import", "out", "--store", tmp_path / "other")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == ("error: out: data/test-00000-of-00001.parquet is missing; nothing is imported; export pets@1 again, or copy the folder again\n")
