"""filter.exact_duplicates: one row for each picture."""

from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from stillroom.operators import Params, select

# Whose copy stays: a training row goes before a held-out one does, never the reverse.
_RANK = {"test": 0, "validation": 1, "train": 2}


class ExactDuplicatesParams(Params):
    """Parameters of `filter.exact_duplicates`."""

    mode: Literal["drop", "tag"] = Field(default="drop", description="drop: one row of each group stays. tag: all stay, and `duplicate_of` names the one that would.")


@select(version=1, requires=["image_hash"], adds={"duplicate_of": pa.string()})
def exact_duplicates(frames: dict[str, pl.DataFrame], params: ExactDuplicatesParams) -> pl.DataFrame:
    """Keep one row of those with the same image bytes: of test, else of validation, else the first in the table.

    `duplicate_of` (string) is the sample id of the row that stays, null for that row itself. Rows
    without an image are never duplicates.
    """
    frame = frames["samples"].with_row_index("row")
    split = pl.col("split").replace_strict(_RANK, default=3) if "split" in frame.columns else pl.lit(3)
    twin = pl.col("sample_id").sort_by(split, "row").first().over("image_hash")
    found = frame.select("sample_id", "image_hash", twin.alias("twin"))
    duplicate_of = found.select(pl.when(pl.col("image_hash").is_not_null() & (pl.col("twin") != pl.col("sample_id"))).then("twin").alias("duplicate_of")).to_series()
    if params.mode == "tag":
        reason = pl.Series("reason", [None] * frame.height, pl.String)
    else:
        reason = pl.select(pl.when(duplicate_of.is_not_null()).then(pl.format("same image as {}", duplicate_of)).alias("reason")).to_series()
    return pl.DataFrame({"reason": reason, "duplicate_of": duplicate_of})
