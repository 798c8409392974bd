"""What a build says while it runs: the events that a listener (the terminal's progress, a test) gets.

A build calls its listener from the thread of whichever stage has something to say, so a listener
must be quick and may be called by several threads at once.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Event", "Note", "StageDone", "StageFailed", "StageProgress", "StageStarted", "StageWaiting", "State"]

State = Literal["Built", "Reused"]


@dataclass(frozen=True)
class StageStarted:
    """A stage began; `units` is how many partitions or units it has, as far as known."""

    name: str
    op: str
    units: int | None = None


@dataclass(frozen=True)
class StageProgress:
    """A stage came this far; `done` and `total` in the stage's own measure (units, steps, rows)."""

    name: str
    done: float
    total: float


@dataclass(frozen=True)
class StageWaiting:
    """A stage is being made by another build, whose `holder` (process and machine) is waited for."""

    name: str
    holder: str


@dataclass(frozen=True)
class StageDone:
    """A stage's table is there: `rows` in it, and how many left on the way. Seconds are wall time.

    `worked` is how many of the rows that came in the build worked on, `taken` how many it took over from
    an earlier build.
    """

    name: str
    state: State
    rows: int
    dropped: int = 0
    rejected: int = 0
    seconds: float = 0.0
    worked: int = 0
    taken: int = 0


@dataclass(frozen=True)
class StageFailed:
    """A stage failed; nothing of it is visible, and what it finished is kept for the next build."""

    name: str
    message: str


@dataclass(frozen=True)
class Note:
    """A line for the user about the build itself: that a server is being started, that a table is published."""

    text: str


Event = StageStarted | StageProgress | StageWaiting | StageDone | StageFailed | Note
