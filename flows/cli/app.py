"""The `stillroom` command: gathers the commands and turns an error into one clear line."""

import sys
from importlib import import_module
from keyword import iskeyword
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.shared import say
from stillroom.disk import is_full
from stillroom.errors import StillroomError

__all__ = ["COMMANDS", "app", "main"]

# In the order of `--help`: the order in which one meets them.
COMMANDS = (
    "init",
    "build",
    "plan",
    "ops",
    "snapshots",
    "show",
    "diff",
    "explain",
    "promote",
    "demote",
    "export",
    "import",
    "verify",
    "gc",
    "migrate",
    "forget",
    "rebuild",
    "deploy",
    "runs",
    "ui",
)

INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of all commands: what a user can mend ends in a line and exit code 1, Ctrl-C in a line and 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except StillroomError as error:
            for line in str(error).splitlines():
                say(f"error: {line}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            say(str(stop) or "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not is_full(error):
                raise
            say("error: the disk is full; make room, such as by `stillroom gc`, and try again")
            raise typer.Exit(1) from None


# A traceback is for a bug of ours. Typer's would print local variables, which may hold what nobody should read.
app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as distribution_version

        print(f"stillroom {distribution_version('stillroom')}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")] = False) -> None:
    """Turn raw data into training sets that are smaller, cleaner and richer, and prove it."""


for _name in COMMANDS:
    _module = f"{_name}_" if iskeyword(_name) else _name
    app.command(_name)(getattr(import_module(f"flows.cli.{_module}"), _module))


def main() -> None:
    """The console script."""
    # A name in a script that the terminal's encoding lacks is printed escaped.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app(prog_name="stillroom")
