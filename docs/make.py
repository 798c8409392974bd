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
from typing import Any

from stillroom import errors, registry
from stillroom.operators import Operator

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
WIDTH = 100


def pages() -> dict[Path, str]:
    """The text of every page that is made, by path."""
    operators = [registry.load(name) for name in sorted(registry.operators())]
    return {
        REFERENCE / "operators.md": operators_page([operator for operator in operators if not operator.hidden]),
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "errors.md": errors_page(),
        REFERENCE / "recipe.schema.json": schema_page(operators),
    }


def stale() -> list[str]:
    """The pages that differ from what the code says."""
    return [str(path.relative_to(DOCS.parent)) for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def operators_page(operators: list[Operator]) -> str:
    """Every operator: what it does, what it reads and adds, its parameters."""
    parts = ["# Operators\n\nMade by `make docs` from the code.\n"]
    parts += [_operator(operator) for operator in operators]
    return "\n".join(parts)


def cli_page() -> str:
    """The --help of every command."""
    from typer.main import get_command

    from flows.cli.app import COMMANDS, app

    group: Any = get_command(app)
    parts = ["# Commands\n\nMade by `make docs` from the code. Each takes `--store` (default `STILLROOM_STORE`, else `./.stillroom/store`).\n"]
    for name in COMMANDS:
        parts.append(f"## stillroom {name}\n\n{_command(group.commands[name])}")
    return "\n".join(parts)


def errors_page() -> str:
    """The error tree, and each error's first line."""
    tree = (inspect.getdoc(errors) or "").split("\n\n")[1]
    about = "Made by `make docs` from `stillroom/errors.py`. The command line prints each as one line, `error: …`, and exits with 1."
    parts = [f"# Errors\n\n{about}\n\n```\n{tree}\n```\n"]
    for name in errors.__all__:
        parts.append(f"- **{name}**: {inspect.getdoc(getattr(errors, name)) or ''}".split("\n")[0])
    return "\n".join(parts) + "\n"


def schema_page(operators: list[Operator]) -> str:
    """The JSON Schema by which editors complete and check recipes."""
    from schemas.recipe_schema import recipe_json_schema

    return json.dumps(recipe_json_schema(operators), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _operator(operator: Operator) -> str:
    kind, name = operator.name.split(".")
    inputs = [f"`{key}`{' (optional)' if value.optional else ''}: {value.kind}" for key, value in operator.inputs.items()]
    adds = ", ".join(f"`{column}`" for column in operator.adds) if not callable(operator.adds) else "depends on its parameters"
    lines = [
        f"## {operator.name}\n",
        f"{operator.summary} [Page](../operators/{kind}/{name}.md)\n",
        f"{operator.shape} · version {operator.version} · reads {'; '.join(inputs) or 'nothing'} · gives {operator.gives} · adds {adds or 'nothing'}\n",
    ]
    fields = operator.params.model_fields
    if fields:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |" for key, field in fields.items()]
    return "\n".join(lines) + "\n"


def _command(command: Any) -> str:
    """What a command takes, without the terminal's boxes, whose width differs."""
    lines = [f"{command.help}\n" if command.help else ""]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        if parameter.param_type_name == "option":
            names = ", ".join(f"`{name}`" for name in parameter.opts)
        else:
            names = f"`{(parameter.metavar or parameter.name).upper()}`"
        lines.append(f"- {names}: {_cell(getattr(parameter, 'help', '') or '')}")
    return "\n".join(lines) + "\n"


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
