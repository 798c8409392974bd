"""Errors are one line, whatever stands in them, and come back whole from another process."""

import pickle

import pytest

from stillroom import errors
from stillroom.errors import InputError, RecipeError, RecipeErrors, StillroomError

CLASSES = [getattr(errors, name) for name in errors.__all__ if name not in ("StillroomError", "RecipeErrors")]


@pytest.mark.parametrize("kind", CLASSES)
def test_is_one_line_without_codes_for_a_terminal(kind):
    args = ("a\nb", "is\r\x1b[31mred", "no\u2028\x85\x00 way") if kind is not RecipeError else ("a\nb", "f", "is\r\x1b[31mred", "no\u2028\x85\x00 way")
    text = str(kind(*args))
    assert text.isprintable() and text.endswith(r"is\r\x1b[31mred; no\u2028\x85\x00 way")


def test_all_faults_of_a_recipe_are_a_line_each():
    assert str(RecipeErrors(RecipeError("a", "op", "is\nwrong"), RecipeError("b", "op", "too"))).split("\n") == [
        r"stage 'a': op: is\nwrong",
        "stage 'b': op: too",
    ]


def test_comes_back_whole_from_another_process():
    back = pickle.loads(pickle.dumps(InputError("x", "is wrong", "mend it")))
    assert isinstance(back, StillroomError) and (back.args, str(back)) == (("x", "is wrong", "mend it"), "x: is wrong; mend it")
