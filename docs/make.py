"""Writes the reference pages from the code, or with --check says which are stale.

    python -m docs.make            write them
    python -m docs.make --check    exit with 1 if one would change

Each page is made from what it documents: operators from their Params models and docstrings, commands
from their --help, errors from their classes, the recipe's JSON Schema from all of them.
"""

import inspect
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

from stillroom import errors, registry
from stillroom.operators import Operator

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
# Columns of a command's help: a terminal's own width would make the page differ from machine to machine.
WIDTH = 100
HIDDEN = """## Hidden operators

No recipe names these: stillroom adds them, and `stillroom plan RECIPE --all` shows where.
"""


def pages() -> dict[Path, str]:
    """The text of every page that is made, by path."""
    operators = [registry.load(name) for name in own_operators()]
    return {
        REFERENCE / "operators.md": operators_page(operators),
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "errors.md": errors_page(),
        REFERENCE / "recipe.schema.json": schema_page(operators),
    }


def own_operators() -> list[str]:
    """The names of stillroom's operators, whatever other packages have installed beside them."""
    return sorted(name for name, module in registry.operators().items() if module.startswith("tasks."))


def stale() -> list[str]:
    """The pages that differ from what the code says."""
    return [str(path.relative_to(DOCS.parent)) for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def operators_page(operators: list[Operator]) -> str:
    """Every operator: what it does, what it reads and adds, its parameters; the hidden ones a line each."""
    shown = [operator for operator in operators if not operator.hidden]
    parts = ["# Operators\n\nMade by `make docs` from the code.\n", "| operator | shape | |", "|---|---|---|"]
    parts += [f"| [{operator.name}](#{_anchor(operator.name)}) | {operator.shape} | {_cell(operator.summary)} |" for operator in shown]
    parts += ["", *[_operator(operator) for operator in shown], HIDDEN]
    parts += [f"- {_linked(operator)} ({operator.shape}): {operator.summary}" for operator in operators if operator.hidden]
    return "\n".join(parts) + "\n"


def cli_page() -> str:
    """The --help of the command and of every command below it."""
    from typer.main import get_command

    from flows.cli.app import COMMANDS, app

    group: Any = get_command(app)
    about = "Made by `make docs` from the code. Data goes to stdout, everything else to stderr. Exit codes: 0, 1 (one clear line says why), 2 (no such"
    parts = [f"# Commands\n\n{about} command or option), 130 (Ctrl-C).\n", _help(group, "stillroom")]
    parts += [f"## stillroom {name}\n\n{_help(group.commands[name], f'stillroom {name}')}" for name in COMMANDS]
    return "\n".join(parts)


def errors_page() -> str:
    """The error tree, and for each error what it takes and what it means."""
    _, _, rest = (inspect.getdoc(errors) or "").partition("\n\n")
    tree, _, more = rest.partition("\n\n")
    about = "Made by `make docs` from `stillroom/errors.py`. The command line prints each as one line, `error: …`, and exits with 1."
    parts = [f"# Errors\n\n{about}\n\n```\n{dedent(tree)}\n```\n\n{' '.join(more.split())}\n", "| error | arguments | |", "|---|---|---|"]
    for name in errors.__all__:
        error = getattr(errors, name)
        takes = ", ".join(inspect.signature(error).parameters) if "__init__" in vars(error) else ""
        parts.append(f"| **{name}** | {f'`{takes}`' if takes else ''} | {_cell(inspect.getdoc(error) or '')} |")
    return "\n".join(parts) + "\n"


def schema_page(operators: list[Operator]) -> str:
    """The JSON Schema by which editors complete and check recipes."""
    from schemas.recipe_schema import recipe_json_schema

    return json.dumps(recipe_json_schema(operators), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _operator(operator: Operator) -> str:
    kind, name = operator.name.split(".")
    inputs = [f"`{key}`{' (optional)' if value.optional else ''}: {value.kind}" for key, value in operator.inputs.items()]
    adds = ", ".join(f"`{column}`" for column in operator.adds) if not callable(operator.adds) else "depends on its parameters"
    draws = " · draws by the seed" if operator.random else ""
    lines = [
        f"## {operator.name}\n",
        f"{operator.summary} [Page](../operators/{kind}/{name}.md)\n",
        f"{operator.shape} · version {operator.version} · reads {'; '.join(inputs) or 'nothing'} · gives {operator.gives} · adds {adds or 'nothing'}{draws}\n",
    ]
    fields = operator.params.model_fields
    if fields:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |" for key, field in fields.items()]
    return "\n".join(lines) + "\n"


def _linked(operator: Operator) -> str:
    """A hidden operator's name, leading to its page if somebody wrote one."""
    page = f"operators/{operator.name.replace('.', '/')}.md"
    return f"[{operator.name}](../{page})" if (DOCS / page).exists() else f"`{operator.name}`"


def _help(command: Any, name: str) -> str:
    """A command's --help as plain text."""
    command.rich_markup_mode = None
    with command.context_class(command, info_name=name, terminal_width=WIDTH) as context:
        return f"```\n{command.get_help(context)}\n```\n"


def _type(annotation: Any) -> str:
    text = inspect.formatannotation(annotation) if not isinstance(annotation, type) else annotation.__name__
    for noise in ("typing.", "pathlib.", "tasks.", "pydantic."):
        text = text.replace(noise, "")
    return _cell(f"`{text}`") if len(text) <= 80 else "see its page"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return _cell(f"`{value}`") if len(str(value)) <= 60 else "see its page"


def _anchor(heading: str) -> str:
    """The fragment by which Markdown viewers find a heading."""
    return heading.replace(".", "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Write the pages, or check them."""
    if "--check" in sys.argv:
        old = stale()
        if old:
            print(f"stale: {', '.join(old)}; run `make docs`", file=sys.stderr)
        return 1 if old else 0
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
