"""How far a command is that goes through many rows: a bar on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.cli.shared import say

__all__ = ["bar"]

PLAIN_PAUSE_S = 20.0


@contextmanager
def bar(what: str, unit: str = "rows") -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr; what comes back is told how much of how much is done."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _plain(what, unit)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[how_far]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None, how_far="")
        yield lambda done, total: bars.update(task, completed=done, total=total, how_far=f"{done:,} of {total:,} {unit}")


def _plain(what: str, unit: str) -> Callable[[int, int], None]:
    said = [time.monotonic()]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - said[0] > PLAIN_PAUSE_S:
            said[0] = now
            say(f"  {what}: {done:,} of {total:,} {unit}")

    return show
