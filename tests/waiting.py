"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any

__all__ = ["wait_for"]


def wait_for(found: Callable[[], Any], seconds: float) -> Any:
    """What `found` gives once that is true; the test fails if it takes longer."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
    return value
