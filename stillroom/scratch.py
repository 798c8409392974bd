"""Scratch: files that go soon, in the store where it is a folder, so that whoever watches its disk sees them."""

import errno
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.stores import Store

__all__ = ["SCRATCH", "memory_map", "scratch_folder"]

SCRATCH = "work/scratch"


def scratch_folder(store: Store) -> Path:
    """The folder for files that go soon: `work/scratch` of a folder store, else (a bucket, a store that we may only read) the system's.

    `stillroom gc` clears away what killed processes leave there.
    """
    if store.local is not None and store.local.is_dir():
        folder = store.local / SCRATCH
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


def memory_map(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new array in a file, zeros at first, whose room on the disk is taken at once.

    A sparse file would be made in any case, and on a full disk the first write to a page that
    finds no room ends the process without a word.

    Raises:
        OSError: ENOSPC, there is no room.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not size:
        return np.zeros(shape, kind)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.truncate(size)
    return np.memmap(path, kind, "r+", shape=shape)
