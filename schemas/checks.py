"""The checks that a recipe may declare under `publish.require.checks`: a small closed set.

Each is a mapping: `column` and one word that says what must hold in every row, or `rows`. A null has no
value to judge, so it passes all but `not_null`: a column may be absent from a whole split. NaN fails.
`schemas/expectations.py` turns them into Great Expectations' expectations.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, Tag, model_validator

__all__ = ["CHECK_WORDS", "Between", "DeclaredCheck", "Equals", "In", "NotNull", "RowCount", "Unique"]

Number = StrictInt | StrictFloat
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ColumnCheck(_Check):
    column: str = Field(min_length=1, description="A light column of the published table.")


class Between(_ColumnCheck):
    """Numbers from the first to the second, both included; null on one side leaves it open."""

    between: tuple[Number | None, Number | None] = Field(description="Lowest and highest value allowed: [0, 9].")

    @model_validator(mode="after")
    def _ordered(self) -> "Between":
        low, high = self.between
        if low is None and high is None:
            raise ValueError("both ends are open, so nothing would be checked")
        if low is not None and high is not None and low > high:
            raise ValueError(f"{low} is above {high}, so no value fits")
        return self


class Equals(_ColumnCheck):
    """The same value in every row."""

    equals: Scalar = Field(description="The one value allowed.")


class NotNull(_ColumnCheck):
    """No row lacks a value."""

    not_null: Literal[True] = Field(description="Always true: a check that may fail isn't declared.")


class In(_ColumnCheck):
    """Only values of a list."""

    values: tuple[Scalar, ...] = Field(alias="in", min_length=1, description="The values allowed.")


class Unique(_ColumnCheck):
    """No value stands in two rows."""

    unique: Literal[True] = Field(description="Always true: a check that may fail isn't declared.")


class Bounds(_Check):
    """How many rows."""

    min: int = Field(default=1, ge=0, description="At least so many rows; 0 allows an empty table.")
    max: int | None = Field(default=None, ge=0, description="At most so many rows.")

    @model_validator(mode="after")
    def _ordered(self) -> "Bounds":
        if self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}, so no table fits")
        return self


class RowCount(_Check):
    """How many rows the whole published table may have."""

    rows: Bounds = Field(description="Bounds on the number of rows: {min: 100, max: 5000}.")


_KINDS: dict[str, type[_Check]] = {"between": Between, "equals": Equals, "not_null": NotNull, "in": In, "unique": Unique, "rows": RowCount}
CHECK_WORDS = tuple(_KINDS)


def _word(value: Any) -> str | None:
    """Which check a mapping is, by the one word of the set that it has; a tag, which no key can be mistaken for."""
    if isinstance(value, _Check):
        return next(f"check:{word}" for word, kind in _KINDS.items() if type(value) is kind)
    words = [word for word in CHECK_WORDS if isinstance(value, dict) and word in value]
    return f"check:{words[0]}" if len(words) == 1 else None


DeclaredCheck = Annotated[
    Annotated[Between, Tag("check:between")]
    | Annotated[Equals, Tag("check:equals")]
    | Annotated[NotNull, Tag("check:not_null")]
    | Annotated[In, Tag("check:in")]
    | Annotated[Unique, Tag("check:unique")]
    | Annotated[RowCount, Tag("check:rows")],
    Discriminator(
        _word,
        custom_error_type="check_word",
        custom_error_message=f"a check is 'column' with one of {', '.join(w for w in CHECK_WORDS if w != 'rows')}, or 'rows'",
    ),
]
