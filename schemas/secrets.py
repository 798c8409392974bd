"""`${env:NAME}` in a recipe: filled from the environment when the recipe is read for use, and never shown.

The recipe's text keeps the reference. What came from the environment is a secret until a person
says otherwise, so whatever is printed, logged or stored goes through `redact`.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["REDACTED", "fill", "redact"]

REDACTED = "***"
# Shorter values ("1", "on") stand in every text by chance; hiding them would hide everything else.
MIN_SECRET_CHARS = 4

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


def fill(value: Any, environment: Mapping[str, str]) -> tuple[Any, set[str], list[tuple[str, str]]]:
    """Replace every `${env:NAME}` in the strings of a value, at any depth; keys stay as they are.

    Returns:
        The filled value, the values that came from the environment, and for each reference that
        could not be filled a problem and a way out.
    """
    secrets: set[str] = set()
    faults: list[tuple[str, str]] = []

    def one(match: re.Match[str]) -> str:
        name = _NAME.fullmatch(match[1])
        if not name:
            faults.append((f"'{match[0]}' isn't a reference", "write ${env:NAME}"))
        elif name[1] not in environment:
            faults.append((f"the environment has no '{name[1]}'", f"set it first: export {name[1]}=…"))
        else:
            secrets.add(environment[name[1]])
            return environment[name[1]]
        return match[0]

    def walk(part: Any) -> Any:
        if isinstance(part, str):
            return _REFERENCE.sub(one, part)
        if isinstance(part, list):
            return [walk(item) for item in part]
        if isinstance(part, dict):
            return {key: walk(item) for key, item in part.items()}
        return part

    return walk(value), secrets, faults


def redact(text: str, secrets: Collection[str]) -> str:
    """Replace every secret in a text by `***`, the longest first; those under 4 characters stay.

    A secret is found as it is, and as JSON and Python's `repr` write it.
    """
    forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1])}
    for form in sorted(forms, key=lambda form: (-len(form), form)):
        if len(form) >= MIN_SECRET_CHARS:
            text = text.replace(form, REDACTED)
    return text
