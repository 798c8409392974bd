"""stillroom init: a first recipe for a folder of images or a Parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import Json, command_line, print_json, say
from stillroom.errors import InputError

__all__ = ["init", "write_recipe"]


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of images, a Parquet file, or a folder of Parquet files.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where the recipe goes; default: NAME.yaml here.")] = None,
    as_json: Json = False,
) -> None:
    """Look at a folder or file and write a recipe for it, with a remark on every line."""
    from flows.starter import recipe_name

    out = out or Path(f"{recipe_name(path)}.yaml")
    found = write_recipe(path, out)
    if as_json:
        print_json({"recipe": str(out), "found": found})
        return
    print(out)
    say(f"for {found}; go on with: {command_line('plan', str(out))}")


def write_recipe(path: Path, out: Path) -> str:
    """Look at what stands at `path`, write a recipe for it to `out`, and say what was found.

    Raises:
        InputError: nothing there that can be read, or `out` is there already, or can't be written.
    """
    from flows.look import look_at
    from flows.starter import recipe_text, summary

    found = look_at(path)
    text = recipe_text(found, out)
    try:
        # "x": a recipe that somebody has worked on is never overwritten.
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(str(out), "is there already", "give another name with --out") from None
    except OSError as error:
        raise InputError(str(out), f"can't be written: {error.strerror}") from None
    return summary(found)
