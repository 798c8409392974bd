"""Content digests of sources: remembered while a file looks unchanged, made anew on demand."""

import sqlite3
from pathlib import Path

import pytest

from flows.sources import content_digest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A STILLROOM_HOME of its own."""
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_unchanged_file_is_not_read_again_unless_asked(home, tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"rows")
    true = content_digest(file)
    with sqlite3.connect(home / "digests.sqlite") as cache:
        cache.execute("UPDATE files SET digest = 'remembered'")
    assert content_digest(file) == "remembered"
    assert content_digest(file, rehash=True) == true
    assert content_digest(file) == true


def test_a_folder_counts_by_names_and_bytes(home, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    before = content_digest(folder)
    (folder / "a").rename(folder / "b")
    renamed = content_digest(folder)
    (folder / "b").write_bytes(b"2")
    assert len({before, renamed, content_digest(folder)}) == 3


def test_what_is_remembered_of_a_folder_serves_no_other(home, tmp_path):
    for name in ("photos", "photos2", "photos/deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(name.encode())
    whole, other = content_digest(tmp_path / "photos"), content_digest(tmp_path / "photos2")
    with sqlite3.connect(home / "digests.sqlite") as cache:
        assert cache.execute("SELECT count(*) FROM files").fetchone() == (3,)
    assert content_digest(tmp_path / "photos") == content_digest(tmp_path / "photos", rehash=True) == whole
    assert content_digest(tmp_path / "photos2") == content_digest(tmp_path / "photos2", rehash=True) == other
    (tmp_path / "photos/deep/a").write_bytes(b"changed")
    assert content_digest(tmp_path / "photos") != whole
