"""filter.exact_duplicates: drop or tag rows whose image has the same bytes as another's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from pydantic import Field

from stillroom.operators import Params, select

if TYPE_CHECKING:
    import polars as pl

# Whose copy stays: what is measured on stays, and what is trained on goes.
_PRECEDENCE = {"test": 0, "validation": 1}


class ExactDuplicatesParams(Params):
    """Parameters of `filter.exact_duplicates`."""

    mode: Literal["drop", "tag"] = Field(default="drop", description="drop: duplicates leave; tag: all rows stay, and `duplicate_of` names the twin.")


def _adds(params: ExactDuplicatesParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType]:
    return {"duplicate_of": pa.string()} if params.mode == "tag" else {}


@select(version=1, requires=["image_hash"], adds=_adds)
def exact_duplicates(frames: "dict[str, pl.DataFrame]", params: ExactDuplicatesParams) -> "pl.DataFrame":
    """Keep one row of those with the same image bytes: the first in table order.

    Where there is a column `split`, a row in test stays before one in validation, and that before all
    others; no test row is ever dropped, not even for another test row, since that would change what is
    measured. Rows without an image are nobody's duplicates. `duplicate_of` (string) is the sample id
    of the row that stays, null for a row that has no twin before it.
    """
    import polars as pl

    samples = frames["samples"].with_row_index("row")
    last = len(_PRECEDENCE)
    precedence = pl.col("split").replace_strict(_PRECEDENCE, default=last, return_dtype=pl.Int64) if "split" in samples.columns else pl.lit(last)
    first = pl.col("sample_id").sort_by("precedence", "row").first().over("image_hash")
    is_twin = pl.col("image_hash").is_not_null() & (pl.col("first") != pl.col("sample_id"))
    found = samples.with_columns(precedence.alias("precedence")).with_columns(first.alias("first"))
    found = found.select("precedence", pl.when(is_twin).then("first").alias("duplicate_of"))
    if params.mode == "tag":
        return found.select(pl.lit(None, pl.String).alias("reason"), "duplicate_of")
    leaves = pl.col("duplicate_of").is_not_null() & (pl.col("precedence") != _PRECEDENCE["test"])
    return found.select(pl.when(leaves).then(pl.format("exact duplicate of {}", "duplicate_of")).alias("reason"))
