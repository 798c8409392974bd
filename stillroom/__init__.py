"""Stillroom: open snapshots of training data, and write operators that make them.

Names load when they are first used: `import stillroom` alone loads no torch, Lance, Pydantic or Prefect.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

__all__ = ["Snapshot", "StillroomError", "apply", "build", "mix", "open", "table", "train"]

_HOMES = {"Snapshot": "stillroom.snapshots", "open": "stillroom.snapshots", "StillroomError": "stillroom.errors", "mix": "stillroom.mixing"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "train":
        return import_module("stillroom.train")
    if name in __all__:
        # What needs the upper rooms is registered by them: nothing here imports upwards.
        (entry,) = entry_points(group="stillroom.api", name=name)
        return entry.load()
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
