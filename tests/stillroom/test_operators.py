"""Declaring an operator: what its function's signature says, however it is written."""

import sys
from types import ModuleType

import pytest

from stillroom.operators import Operator, Params

SOURCE = """
{first}
from typing import TYPE_CHECKING

from stillroom.operators import Params, select

if TYPE_CHECKING:
    import polars as pl


class WeightParams(Params):
    weight: int = 1


@select(version=1)
def weigh(frames: "dict[str, pl.DataFrame]", params: WeightParams) -> "pl.DataFrame":
    return frames["samples"]


@select(version=1)
def keep(frames: "dict[str, pl.DataFrame]") -> "pl.DataFrame":
    return frames["samples"]
"""


@pytest.mark.parametrize("first", ["", "from __future__ import annotations"])
def test_parameters_are_known_where_other_types_are_named_for_the_checker_alone(first, monkeypatch):
    module = ModuleType("mine.table.weigh")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Pydantic looks there
    exec(SOURCE.format(first=first), vars(module))
    weigh, keep = vars(module)["weigh"], vars(module)["keep"]
    assert isinstance(weigh, Operator) and (weigh.name, weigh.params(weight=3).weight) == ("table.weigh", 3)
    assert keep.params is Params
