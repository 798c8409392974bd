"""Finding operators: by the entry-point group `stillroom.operators`, by file name, without importing them.

Each entry names a package; a file `<package>/<kind>/<name>.py` is the operator `<kind>.<name>`.
Files and folders that start with an underscore, and folders that are no kind, are not looked at.
"""

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from stillroom.errors import InputError, RecipeError
from stillroom.operators import Operator

__all__ = ["KINDS", "load", "operators"]

KINDS = ("ingest", "table", "train", "score", "prune", "distill", "generate", "filter", "reinforce", "evaluate")


@cache
def operators() -> dict[str, str]:
    """The module of every operator by its name; none is imported.

    Raises:
        InputError: two packages bring an operator of one name.
    """
    found: dict[str, str] = {}
    for entry in sorted(entry_points(group="stillroom.operators"), key=lambda entry: (entry.name != "stillroom", entry.name)):
        spec = find_spec(entry.value)
        for folder in spec.submodule_search_locations or [] if spec else []:
            for file in sorted(Path(folder).glob("*/*.py")):
                name = f"{file.parent.name}.{file.stem}"
                if file.parent.name not in KINDS or file.stem.startswith("_"):
                    continue
                module = f"{entry.value}.{name}"
                if found.setdefault(name, module) != module:
                    raise InputError(f"operator '{name}'", f"brought by both {found[name]} and {module}", "uninstall one of the two packages")
    return found


@cache
def load(name: str) -> Operator:
    """Import the operator of that name.

    Raises:
        RecipeError: there is none; the nearest name is in the text.
    """
    module = operators().get(name)
    if module is None:
        near = difflib.get_close_matches(name, operators(), 1)
        raise RecipeError("", "op", f"unknown operator '{name}'", f"did you mean '{near[0]}'?" if near else "`stillroom ops` lists them")
    (operator,) = [value for value in vars(import_module(module)).values() if isinstance(value, Operator) and value.fn.__module__ == module]
    return operator
