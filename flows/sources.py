"""Content digests of what recipes read: a file or folder counts by what it holds, not by its name or date.

A file's digest is remembered by path, size, both times and inode, so an unchanged one isn't read
again; `rehash` ignores what is remembered.
"""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from flows.home import home
from stillroom.digests import json_digest

__all__ = ["Looked", "content_digest"]


@dataclass
class Looked:
    """How many files were read for their digests, and how many went by what is remembered of them."""

    read: int = 0
    trusted: int = 0


def content_digest(path: Path, *, rehash: bool = False, looked: Looked | None = None) -> str:
    """The digest of a file's bytes, or of a folder's relative names and bytes, 64 hex characters; counts the files in `looked`."""
    looked = looked or Looked()
    place = path.resolve()
    with closing(_cache()) as cache, cache:
        if place.is_file():
            known = dict(cache.execute("SELECT key, digest FROM files WHERE key = ?", (_key(place),)))
            return _file(place, known, cache, rehash, looked)
        files = sorted(found for found in place.rglob("*") if found.is_file())
        # All that is remembered of the folder at once: hex digits sort before "g".
        under = os.fsencode(place / "x").hex()[:-2]
        known = dict(cache.execute("SELECT key, digest FROM files WHERE key >= ? AND key < ?", (under, f"{under}g")))
        return json_digest([[os.fsencode(file.relative_to(place)).hex(), _file(file, known, cache, rehash, looked)] for file in files])


def _file(path: Path, known: Mapping[str, str], cache: sqlite3.Connection, rehash: bool, looked: Looked) -> str:
    key = _key(path)
    if key in known and not rehash:
        looked.trusted += 1
        return known[key]
    looked.read += 1
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path) if path.stat().st_size else None
    digest = hasher.hexdigest()
    cache.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (key, digest))
    return digest


def _key(path: Path) -> str:
    """What a file's digest is remembered by."""
    stat = path.stat()
    return f"{os.fsencode(path).hex()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def _cache() -> sqlite3.Connection:
    cache = sqlite3.connect(home() / "digests.sqlite", timeout=60)
    cache.execute("CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, digest TEXT)")
    return cache
