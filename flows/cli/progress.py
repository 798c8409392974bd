"""The live progress of a build: a line a stage that is done, and below them what is running now.

Where stderr is no terminal, plain lines: one when a stage begins, some while it is long, one at its end.
"""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flows.cli.shared import cell, say
from flows.events import Event, Note, StageDone, StageFailed, StageProgress, StageStarted, StageWaiting

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["LiveProgress", "PlainProgress", "Progress", "is_hidden", "progress", "rows_text"]

MARKS = {"Built": "✓", "Reused": "·", "Failed": "✗"}
STYLES = {"Built": "green", "Reused": "dim", "Failed": "red"}
NAME_WIDTH, ROWS_WIDTH = 28, 17
# In plain lines, a stage says how far it is at most this often.
PLAIN_PAUSE_S = 20.0


def progress() -> "Progress":
    """The progress that fits stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress()


def is_hidden(stage: str) -> bool:
    """Whether a stage is one that plan added: a control twin, or a student of the proof."""
    return "--" in stage


def rows_text(rows: int, dropped: int, rejected: int) -> str:
    """Rows in and out, or rows out alone where none left."""
    gone = dropped + rejected
    return f"{rows + gone:,} → {rows:,}" if gone else f"{rows:,}"


class Progress:
    """A listener for a build, and a context manager around it.

    Events come from several threads; one at a time is shown. Reused stages are shown once something
    runs: where nothing does, the command says so in one line.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reused: list[StageDone] = []
        self._anything_ran = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        with self._lock:
            if not self._anything_ran and isinstance(event, StageDone) and event.state == "Reused":
                self._reused.append(event)
                return
            self._anything_ran = True
            for done in self._reused:
                self.show(done)
            self._reused = []
            self.show(event)

    def show(self, event: Event) -> None:
        """Show one event."""
        raise NotImplementedError


class LiveProgress(Progress):
    """Shows a build on a terminal: what is running stays below, with its bar."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__()
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[stage]}", markup=False),
            TextColumn("{task.fields[op]}", style="dim", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[how_far]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bars = Bars(*columns, console=console, transient=True)
        self._running: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StageStarted):
            self._running[event.name] = self._bars.add_task("", total=None, stage=event.name, op=event.op, how_far="")
        elif isinstance(event, StageProgress):
            task = self._running.get(event.name)
            if task is not None and event.total:
                how_far = f"{event.done / event.total:.0%}"
                self._bars.update(task, total=event.total, completed=event.done, how_far=how_far)
        elif isinstance(event, StageWaiting):
            if event.name in self._running:
                self._bars.update(self._running[event.name], how_far=_waits(event))
        elif isinstance(event, Note):
            self._bars.console.print(cell(event.text), style="dim", soft_wrap=True)
        else:
            self._finish(event)

    def _finish(self, event: StageDone | StageFailed) -> None:
        from rich.text import Text

        task = self._running.pop(event.name, None)
        if task is not None:
            self._bars.remove_task(task)
        state = _state(event)
        faint = is_hidden(event.name) or state == "Reused"
        line = Text(f"{MARKS[state]} ", STYLES[state]) + Text(_line(event), "dim" if faint else "")
        self._bars.console.print(line, soft_wrap=True)


class PlainProgress(Progress):
    """Shows a build in plain lines: for a log file, a pipe, a dumb terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def show(self, event: Event) -> None:
        """Print one event, where it is worth a line."""
        if isinstance(event, StageStarted):
            self._said[event.name] = time.monotonic()
            say(f"  {cell(event.name):<{NAME_WIDTH}} started  {event.op}")
        elif isinstance(event, StageProgress):
            now = time.monotonic()
            if event.total and event.done < event.total and now - self._said.get(event.name, now) > PLAIN_PAUSE_S:
                self._said[event.name] = now
                say(f"  {cell(event.name):<{NAME_WIDTH}} {event.done / event.total:.0%}")
        elif isinstance(event, StageWaiting):
            say(f"  {cell(event.name):<{NAME_WIDTH}} {_waits(event)}")
        elif isinstance(event, Note):
            say(cell(event.text))
        else:
            say(f"{MARKS[_state(event)]} {_line(event)}")


def _state(event: StageDone | StageFailed) -> str:
    return event.state if isinstance(event, StageDone) else "Failed"


def _waits(event: StageWaiting) -> str:
    return f"waits for another build that makes it ({cell(event.holder)})"


def _line(event: StageDone | StageFailed) -> str:
    name = f"{cell(event.name):<{NAME_WIDTH}}"
    if isinstance(event, StageFailed):
        return f"{name} Failed"  # the reason follows as the command's error
    rows = rows_text(event.rows, event.dropped, event.rejected)
    left = [f"{count:,} {what}" for what, count in (("dropped", event.dropped), ("rejected", event.rejected)) if count]
    worked = [f"{event.worked:,} built, {event.taken:,} taken over"] if event.taken else []
    return f"{name} {event.state:<7} {event.seconds:>7.1f} s  {rows:>{ROWS_WIDTH}} rows  {', '.join(worked + left)}".rstrip()
