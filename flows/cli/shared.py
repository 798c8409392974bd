"""What the commands share: the options `--store` and `--json`, and how rows, JSON and remarks are printed."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DEFAULT_STORE",
    "Json",
    "Overrides",
    "Recipe",
    "Rehash",
    "Store",
    "absolute",
    "cell",
    "command_line",
    "local_time",
    "output",
    "plain",
    "print_json",
    "print_table",
    "say",
]

DEFAULT_STORE = ".stillroom/store"
# Where nobody looks at a window, a table is as wide as its content, up to this.
PIPE_WIDTH = 400

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.PARAM=VALUE", help="Replace a value of the recipe; may be given again."),
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Read source files again, even those whose size, times and inode are as they were.")]
Store = Annotated[str, typer.Option("--store", envvar="STILLROOM_STORE", metavar="STORE", help="The store: a folder, or an object store's URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]


def say(text: str) -> None:
    """Tell the user something that isn't data: it goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def output() -> "Console":
    """The console for data: stdout, in full where it isn't a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(
    rows: Sequence[Any],
    columns: Mapping[str, str] | None = None,
    *,
    as_json: bool = False,
    title: str | None = None,
    dim: Sequence[bool] = (),
    styles: Mapping[str, str] | None = None,
) -> None:
    """Print rows (mappings or dataclasses) as a table, or all of their fields as JSON.

    Args:
        rows: one mapping or dataclass a line; without any, nothing is printed.
        columns: heading by field, in order; None shows all fields under their names.
        as_json: print JSON instead, with all fields whatever `columns` says.
        title: a line above the table.
        dim: for each row, whether it stands back.
        styles: how a column's cells look, by field: a colour of rich.
    """
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = [plain(row) for row in rows]
    headings = columns if columns is not None else {name: name for name in (lines[0] if lines else {})}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name, heading in headings.items():
        numeric = any(_is_number(line.get(name)) for line in lines)
        table.add_column(Text(heading), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold", style=(styles or {}).get(name))
    for index, line in enumerate(lines):
        table.add_row(*(Text(cell(line.get(name))) for name in headings), style="dim" if index < len(dim) and dim[index] else None)
    output().print(table)


def cell(value: Any) -> str:
    """A value as a table shows it: thousands apart, seconds with a decimal, nothing for what isn't there."""
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(entry) for entry in value)
    # A file name may hold anything, escape sequences for the terminal included.
    return "".join(letter if letter.isprintable() or letter == "\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def local_time(stamp: str) -> str:
    """A time as the store writes it (ISO, UTC) on the clock of whoever reads it."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M")


def plain(value: Any) -> Any:
    """The value in dicts, lists, strings and numbers, for JSON, which has no NaN and no infinity: those are text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def command_line(*words: str) -> str:
    """A `stillroom` command as a shell takes it, from whatever folder where its paths are absolute."""
    return shlex.join(["stillroom", *words])


def absolute(place: str) -> str:
    """A folder or file as an absolute path; a URI stays as it is."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
