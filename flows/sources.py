"""Content digests of what recipes read: a file or folder counts by what it holds, not by its name or date.

A file's digest is remembered by path, size, both times and inode, so an unchanged one isn't read
again; `rehash` ignores what is remembered.
"""

import os
import sqlite3
from pathlib import Path

from blake3 import blake3

from flows.home import home
from stillroom.digests import json_digest

__all__ = ["content_digest"]


def content_digest(path: Path, *, rehash: bool = False) -> str:
    """The digest of a file's bytes, or of a folder's relative names and bytes, 64 hex characters."""
    with _cache() as cache:
        if path.is_file():
            return _file(path, cache, rehash)
        files = sorted(found for found in path.rglob("*") if found.is_file())
        return json_digest([[os.fsencode(file.relative_to(path)).hex(), _file(file, cache, rehash)] for file in files])


def _file(path: Path, cache: sqlite3.Connection, rehash: bool) -> str:
    stat = path.stat()
    key = f"{os.fsencode(path.resolve()).hex()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    known = None if rehash else cache.execute("SELECT digest FROM files WHERE key = ?", (key,)).fetchone()
    if known:
        return str(known[0])
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path) if stat.st_size else None
    digest = hasher.hexdigest()
    cache.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (key, digest))
    return digest


def _cache() -> sqlite3.Connection:
    home().mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(home() / "digests.sqlite", timeout=60)
    cache.execute("CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, digest TEXT)")
    return cache
