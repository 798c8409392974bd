"""`--set core.keep=20%`: change one entry of a recipe as if its text said so."""

from collections.abc import Iterator, Sequence
from typing import Any

from schemas.wording import near
from schemas.yaml import Path, read_yaml
from stillroom.errors import RecipeError

__all__ = ["apply_overrides"]

OUTSIDE = ("name", "seed", "publish")


def apply_overrides(tree: dict[str, Any], lines: dict[Path, int], overrides: Sequence[str]) -> Iterator[RecipeError]:
    """Set each `stage.entry=value`, `seed=value` or `publish.entry=value` in the tree; yield what can't be.

    Values are YAML. An entry that isn't there yet is made. The line of what was set becomes 0.
    """
    for override in overrides:
        dotted, equals, text = override.partition("=")
        names = dotted.strip().split(".")
        if not equals or not all(names):
            yield RecipeError("", f"--set {override}", "isn't an entry and a value", "write --set stage.entry=value")
            continue
        document = read_yaml(text)
        if document.faults:
            fault = document.faults[0]
            yield RecipeError("", f"--set {dotted}", fault.problem, fault.hint)
            continue
        stages = tree.get("stages")
        stages = stages if isinstance(stages, dict) else {}
        if names[0] in OUTSIDE and names[0] not in stages:
            path: Path = tuple(names)
        elif names[0] not in stages:
            yield RecipeError("", f"--set {dotted}", f"the recipe has no stage '{names[0]}'", near(names[0], [*stages, *OUTSIDE]))
            continue
        elif len(names) == 1:
            yield RecipeError(names[0], f"--set {dotted}", "names a whole stage", f"name an entry of it: --set {names[0]}.entry=value")
            continue
        else:
            path = ("stages", *names)
        if problem := _put(tree, path, document.value):
            yield RecipeError(names[0] if path[0] == "stages" else "", f"--set {dotted}", problem, "set the entry above it as a whole")
            continue
        for known in [known for known in lines if known[: len(path)] == path]:
            del lines[known]
        lines[path] = 0


def _put(tree: dict[str, Any], path: Path, value: Any) -> str | None:
    """Put a value at a path, making mappings on the way; what is in the way, if anything."""
    here: Any = tree
    for depth, name in enumerate(path[:-1]):
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            return f"'{'.'.join(path[: depth + 1]).removeprefix('stages.')}' isn't a mapping"
    here[path[-1]] = value
    return None
