"""Every error that stillroom raises on purpose.

    StillroomError
    ├── RecipeError     a recipe asks for something that can't be (stage, field)
    │   └── RecipeErrors    all faults of one recipe, a line each
    ├── InputError      a file, folder or argument outside any recipe is not what was expected
    ├── StageError      a stage of a build failed (stage, reason)
    ├── GateError       a gate refused to publish
    └── StoreError      a store lacks something, or holds something else than its record says
        └── UnreachableError    an object store doesn't answer, or refuses

Every argument goes into `args`, and the text is made from them: an error comes back whole from a
worker process, which rebuilds it as `Class(*args)`.

A text is one line, whatever stands in the arguments: names and values that come from elsewhere may
hold line ends, or codes that a terminal obeys.
"""

import re

__all__ = ["GateError", "InputError", "RecipeError", "RecipeErrors", "StageError", "StillroomError", "StoreError", "UnreachableError"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class StillroomError(Exception):
    """The root: what a user can mend. The command line prints it as one line and exits with 1."""


class RecipeError(StillroomError):
    """A recipe asks for something that can't be."""

    def __init__(self, stage: str, field: str, problem: str, hint: str = "") -> None:
        super().__init__(stage, field, problem, hint)

    def __str__(self) -> str:
        stage, field, problem, hint = self.args
        where = f"stage '{stage}': " if stage else "recipe: "
        return _line(f"{where}{field}: {problem}", hint)


class RecipeErrors(RecipeError):
    """All faults of one recipe at once, one line each."""

    def __init__(self, *faults: RecipeError) -> None:
        StillroomError.__init__(self, *faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.args)


class InputError(StillroomError):
    """A file, a folder or an argument outside a recipe is not what was expected."""

    def __init__(self, what: str, problem: str, hint: str = "") -> None:
        super().__init__(what, problem, hint)

    def __str__(self) -> str:
        what, problem, hint = self.args
        return _line(f"{what}: {problem}", hint)


class StageError(StillroomError):
    """A stage of a build failed for a reason that the user can mend."""

    def __init__(self, stage: str, problem: str, hint: str = "") -> None:
        super().__init__(stage, problem, hint)

    def __str__(self) -> str:
        stage, problem, hint = self.args
        return _line(f"stage '{stage}': {problem}", hint)


class GateError(StillroomError):
    """A gate refused to publish a snapshot, or to promote it."""

    def __init__(self, name: str, problem: str, hint: str = "") -> None:
        super().__init__(name, problem, hint)

    def __str__(self) -> str:
        name, problem, hint = self.args
        return _line(f"'{name}': {problem}", hint)


class StoreError(StillroomError):
    """A store lacks something, or holds something else than its record says."""

    def __init__(self, what: str, problem: str, hint: str = "") -> None:
        super().__init__(what, problem, hint)

    def __str__(self) -> str:
        what, problem, hint = self.args
        return _line(f"{what}: {problem}", hint)


class UnreachableError(StoreError):
    """An object store doesn't answer, answers with errors, or refuses: nothing is wrong with what it holds."""


def _line(text: str, hint: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), f"{text}; {hint}" if hint else text)
