"""Verify: a damaged, missing, older or foreign file is found and placed; an untouched store is sound."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import lancedb
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.build import build_recipe
from stillroom.errors import InputError, StoreError
from stillroom.stores import Store
from storage.verify import Finding, verify

RECIPE = """
name: mini
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  looks: {op: score.embed, from: split.train, side_px: 8, channels: 1}
  core: {op: prune.random, from: looks, keep: 10%}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""
# No reader goes by these alone: Lance looks at its versions, and a tag's times and sizes say nothing.
NOT_READ = ("_versions/latest_version_hint.json", "_refs/tags/")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with mini@1."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mini.yaml").write_text(RECIPE)
    build_recipe(folder / "mini.yaml", folder / "store", workers=1)
    return folder / "store"


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(made, tmp_path / "mine"))


def only(store: Path, *, narrow: bool = True) -> Finding:
    (finding,) = [finding for finding in verify(Store(store), narrow=narrow).findings if finding.is_fault]
    return finding


def data_file(store: Path, table: str) -> Path:
    (file,) = (store / f"{table}.lance" / "data").iterdir()
    return file


def test_a_report_is_missed_once_its_build_was_done_and_not_before(made, mine):
    (mine / "snapshots/mini/1.html").unlink()
    assert (only(mine).kind, only(mine).snapshots) == ("missing", ("mini@1",))
    for told in (mine / "published").glob("*.json"):  # the last word of a build
        told.unlink()
    report = verify(Store(mine))
    assert report.sound and [finding.kind for finding in report.findings] == ["left over"]
    assert build_recipe(made.parent / "mini.yaml", mine, workers=1).snapshot == "mini@1"
    assert verify(Store(mine)).findings == []


def test_an_untouched_store_and_its_copy_are_sound(made, mine):
    for store in (made, mine):
        report = verify(Store(store))
        assert (report.sound, report.findings) == (True, [])
        assert report.files == len([path for path in store.rglob("*.lance/*/*") if path.suffix in (".lance", ".manifest", ".txn")])


def test_every_flip_that_a_reader_could_see_is_found(mine):
    chance = random.Random(3)
    files = [path for path in sorted(mine.rglob("*")) if path.is_file() and not any(part in str(path) for part in NOT_READ)]
    for path in [*files, *chance.choices(files, k=40)]:
        whole = path.read_bytes()
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        try:
            seen = verify(Store(mine), narrow=False)
            assert str(path.relative_to(mine)) in {finding.key for finding in seen.findings if finding.is_fault}
        except StoreError as error:  # store.json: nothing else can be trusted then
            assert path.name == "store.json" and str(error).startswith("'store.json': ")
        path.write_bytes(whole)


def test_every_flip_in_a_tag_that_a_reader_could_see_is_found(mine):
    table = str(mine / "mini.lance")
    for tag in sorted((mine / "mini.lance/_refs/tags").iterdir()):
        whole, before = tag.read_bytes(), lance.dataset(table, version=tag.stem).version
        for place in range(len(whole)):
            tag.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
            if verify(Store(mine), narrow=False).sound:  # such as a digit of a time
                assert {name: told["version"] for name, told in lance.dataset(table).tags.list().items()}[tag.stem] == before, place
                assert lance.dataset(table, version=tag.stem).version == before, place
        tag.write_bytes(whole)


def test_damage_is_placed_by_table_fragment_column_and_snapshot(mine):
    file = data_file(mine, "stages/mini.raw")
    raw = file.read_bytes()
    place = raw.index(b"\x89PNG") + 45
    file.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
    found = only(mine)
    assert (found.kind, found.table, found.fragment, found.columns, found.snapshots) == ("damaged", "stages/mini.raw", 0, ("image",), ("mini@1",))
    assert found.problem == "has other bytes than were written"


def test_a_truncated_a_missing_and_an_older_file(mine):
    file = data_file(mine, "stages/mini.core")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    assert only(mine).problem == f"has {len(whole) - 7:,} bytes, not {len(whole):,}"
    file.unlink()
    assert (only(mine).kind, only(mine).snapshots) == ("missing", ("mini@1",))
    file.write_bytes(data_file(mine, "stages/mini.looks.scores").read_bytes())
    assert only(mine, narrow=False).kind == "damaged"


def test_objects_in_each_others_place(mine):
    records = sorted((mine / "records").glob("*.json"))
    first, second = (path.read_bytes() for path in records[:2])
    records[1].write_bytes(first)
    faults = {finding.key: finding for finding in verify(Store(mine)).findings if finding.is_fault}
    assert "not its own" in faults[f"records/{records[1].name}"].problem
    records[1].write_bytes(second)
    (mine / "snapshots/mini/2.json").write_bytes((mine / "snapshots/mini/1.json").read_bytes())
    assert only(mine).problem == "is the manifest of mini@1, not its own"


def test_what_nobody_wrote_down(mine):
    (mine / "mini.lance" / "data" / "half.lance").write_bytes(b"of a build that died")
    assert verify(Store(mine)).sound
    (left,) = verify(Store(mine)).findings
    assert (left.kind, left.table) == ("left over", "mini")
    (mine / "notes.txt").write_text("mine")
    assert (only(mine).kind, only(mine).key) == ("foreign", "notes.txt")
    (mine / "notes.txt").unlink()
    lancedb.connect(str(mine)).open_table("mini").delete("label = 3")
    found = [finding for finding in verify(Store(mine)).findings if finding.is_fault]
    assert [(finding.kind, finding.problem) for finding in found] == [("foreign", "a version that no record names")]


def test_one_snapshot_alone(mine):
    file = data_file(mine, "mini")
    file.write_bytes(file.read_bytes()[:-1])
    assert [finding.key for finding in verify(Store(mine), "mini@1").findings] == [str(file.relative_to(mine))]
    with pytest.raises(InputError, match="mini@9: no such snapshot"):
        verify(Store(mine), "mini@9")


def test_the_command_names_what_is_wrong_and_ends_with_1(mine, monkeypatch):
    from flows.cli.app import app

    run: Callable[..., object] = lambda: CliRunner().invoke(app, ["verify", "--store", str(mine)])  # noqa: E731
    sound = run()
    assert (sound.exit_code, sound.stdout.split(";")[0]) == (0, f"{mine}: sound")
    file = data_file(mine, "mini")
    file.write_bytes(file.read_bytes()[:-1])
    ended = run()
    assert ended.exit_code == 1
    assert file.name in ended.stdout and "mini@1" in ended.stdout and "1 faults" in ended.stdout


def test_rows_written_are_rows_read_back(tmp_path):
    """A part whose bytes changed between write and commit is refused, and named by its rows."""
    from stillroom.stored import StoredTable
    from storage.commits import commit_fragments, write_batches
    from storage.tally import Tally, checked_tally

    store, schema = Store(tmp_path), pa.schema([("sample_id", pa.string()), ("x", pa.int64())])
    parts, fragments = [], []
    for start in (0, 5000):
        tally = Tally(schema)
        batch = pa.record_batch([pa.array([f"s{n}" for n in range(start, start + 5000)]), pa.array(range(5000))], schema=schema)
        fragments += write_batches(store, "t", tally.watch([batch]), schema)
        parts.append(tally.as_json())
    table = StoredTable(store, commit_fragments(store, "t", schema, fragments, fingerprint="a" * 64))
    assert checked_tally(table, parts)["unique"]
    with pytest.raises(StoreError, match="rows 5,000 to 9,999 read back are not those that were written"):
        checked_tally(table, [parts[0], parts[0]])
