"""table.mix: several tables as one."""

import polars as pl
from pydantic import Field

from stillroom.operators import Draw, Input, Params, select


class MixParams(Params):
    """Parameters of `table.mix`."""

    weights: dict[str, float] | None = Field(default=None, description="Shares of the mix by input name. Left out, all rows stay.")


@select(version=1, inputs={"*": Input()}, random=True)
def mix(frames: dict[str, pl.DataFrame], params: MixParams, draw: Draw) -> pl.DataFrame:
    """Put the rows of all inputs one after another; of two with one id the second is dropped."""
    parts = []
    for name, frame in frames.items():
        parts.append(frame.select("sample_id").with_columns(pl.lit(name).alias("input")).with_row_index("row"))
    lines = pl.concat(parts).with_columns(pl.col("row").cast(pl.Int64))
    twice = lines["sample_id"].is_first_distinct()
    return lines.with_columns(pl.when(~twice).then(pl.lit("duplicate of a row in an earlier input")).alias("reason"))
