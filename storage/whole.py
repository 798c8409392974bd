"""Folders that appear whole or not at all: they grow beside their place, and one rename puts them there.

`.NAME.stillroom-KEY` holds what grows: `whole/`, which will be NAME, and whatever the caller notes
beside it. A crash leaves it, and nothing at NAME; who comes next with the same key goes on in it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from stillroom.errors import InputError

__all__ = ["appear", "clear_leftovers", "file_digest", "flush_folder", "growing", "write_flushed"]

CHUNK_BYTES = 8 << 20


@contextmanager
def growing(target: Path, key: str) -> Iterator[Path]:
    """The folder beside `target` in which it grows, held by one process at a time and removed once that went well.

    Args:
        target: where `whole/` of that folder will be.
        key: hex digits; what another call with the same ones left is there.

    Raises:
        InputError: another process is at it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f"{_prefix(target)}{key[:16]}"
    with _held(folder, target):
        (folder / "whole").mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def appear(whole: Path, target: Path) -> None:
    """Put a folder at its place, which is empty or not there, once all of it is on the disk."""
    for folder, _, _ in os.walk(whole):
        flush_folder(Path(folder))
    os.rename(whole, target)
    flush_folder(target.parent)


def clear_leftovers(target: Path) -> None:
    """Remove what earlier calls for this target left, unless a process is still at it."""
    for folder in target.parent.iterdir():
        if folder.name.startswith(_prefix(target)):
            with suppress(InputError, OSError), _held(folder, target):
                shutil.rmtree(folder)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a small file that is there as a whole or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())
    os.rename(part, path)


def flush_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """The BLAKE3 of a file, 64 hex characters."""
    # Not mapped: a mapped file counts as this process's memory.
    hasher = blake3(max_threads=blake3.AUTO)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


@contextmanager
def _held(folder: Path, target: Path) -> Iterator[None]:
    """Hold a folder's lock, which goes with the process that has it, however that ends."""
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the folder between the two lines above.
            if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
                yield
                return
        except BlockingIOError:
            raise InputError(str(target), "is being written by another process", "wait for it, or give another name") from None
        finally:
            os.close(handle)


def _prefix(target: Path) -> str:
    return f".{target.name}.stillroom-"
