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
