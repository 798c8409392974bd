"""Disk: whether an error means that one is full."""

import errno
import re

from stillroom.errors import StillroomError

__all__ = ["is_full"]

# Lance and obstore keep the system's words, and lose its number.
FULL = re.compile(r"No space left on device|Disk quota exceeded|kind: StorageFull")


def is_full(error: BaseException) -> bool:
    """Whether this was raised because a disk is full, or a quota used up, and isn't told in one line yet."""
    if isinstance(error, StillroomError):
        return False
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)) is not None
