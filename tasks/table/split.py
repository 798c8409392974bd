"""table.split: training, validation and test, by the hash of each row's group, or as given."""

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from schemas.quantities import Fraction
from stillroom.errors import InputError
from stillroom.fields import split_field
from stillroom.operators import Draw, Params, Rows, row

Split = Literal["train", "validation", "test"]
_DEFAULT_SHARE = 0.1


class Given(Params):
    """A column that says which split a row is in."""

    column: str = Field(description="The column; numbers count as their digits.")
    mapping: dict[str, Split] = Field(
        default={"train": "train", "validation": "validation", "val": "validation", "test": "test"},
        description="Split by value. A value that isn't there is an error.",
    )


class SplitParams(Params):
    """Parameters of `table.split`."""

    validation: Fraction | None = Field(default=None, description="Share of the groups that goes to validation; default 10%, with `given` none.")
    test: Fraction | None = Field(default=None, description="Share of the groups that goes to test; default 10%, with `given` none.")
    group: str | None = Field(default=None, description="Rows with one value of this column stay together. Left out, or where it is null, each row is a group.")
    given: Given | None = Field(default=None, description="Take the split from a column; shares are then cut from what it puts in train.")

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> Self:
        if sum(_shares(self)) >= 1:
            raise ValueError("validation and test leave nothing to train on")
        return self


def _shares(params: SplitParams) -> tuple[float, float]:
    """The shares of validation and test."""
    default = 0.0 if params.given else _DEFAULT_SHARE
    return (default if params.validation is None else params.validation, default if params.test is None else params.test)


def _requires(params: SplitParams) -> list[str]:
    return [*([params.group] if params.group else []), *([params.given.column] if params.given else [])]


def _adds(params: SplitParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    cut = {"train"} | {split for split, share in zip(("validation", "test"), _shares(params), strict=True) if share > 0}
    given = set(params.given.mapping.values()) if params.given else {"train"}
    return {"split": split_field(sorted(cut | given if "train" in given else given))}


@row(version=1, requires=_requires, adds=_adds, keeps_rows=True, random=True)
def split(batch: pa.RecordBatch, params: SplitParams, draw: Draw) -> Rows:
    """Give each row a split by the hash of its group, so that it keeps it when the data grows.

    A group's number in [0, 1) is a hash of seed and group; below the share of test the group is test,
    below both shares validation, else train. Shares are met on average, not exactly. More validation
    takes rows from train alone; more test takes them from validation first.

    Raises:
        InputError: a value of the given column that the mapping doesn't have.
    """
    validation, test = _shares(params)
    place = draw.uniform(_groups(batch, params.group), 1)[:, 0]
    names = np.where(place < test, "test", np.where(place < test + validation, "validation", "train"))
    if params.given:
        given = _given(batch, params.given)
        names = np.where(given == "train", names, given)
    return Rows(pa.record_batch({"sample_id": batch["sample_id"], "split": pa.array(names.tolist(), pa.string())}))


def _groups(batch: pa.RecordBatch, group: str | None) -> list[str]:
    """The key of each row's group. Groups and ids of single rows can't meet: a group's key has a prefix."""
    ids = batch["sample_id"].to_pylist()
    if group is None:
        return ids
    return [sample_id if value is None else f"group\0{value}" for value, sample_id in zip(_texts(batch, group), ids, strict=True)]


def _given(batch: pa.RecordBatch, given: Given) -> np.ndarray:
    values = _texts(batch, given.column)
    splits = [None if value is None else given.mapping.get(value) for value in values]
    if None in splits:
        value = values[splits.index(None)]
        shown = "null" if value is None else f"'{value}'"
        raise InputError(f"given.mapping of column '{given.column}'", f"has no split for {shown}", f"it has {', '.join(given.mapping)}")
    return np.array(splits, dtype="<U10")


def _texts(batch: pa.RecordBatch, column: str) -> list[str | None]:
    """A column's values as text: what YAML reads as a number is compared by its digits."""
    kind = batch.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise InputError(f"column '{column}'", f"is {kind}, and can't say which rows belong together", "it has to be text, whole numbers or booleans")
    return batch[column].cast(pa.string()).to_pylist()
