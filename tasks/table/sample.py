"""table.sample: a stratified sample of a table, for trials on a part of the data."""

from typing import TYPE_CHECKING

from pydantic import Field

from stillroom.operators import Draw, Params, select

if TYPE_CHECKING:
    import polars as pl


class SampleParams(Params):
    """Parameters of `table.sample`."""

    rows: int = Field(gt=0, description="How many rows to keep; fewer where there are fewer.")


@select(version=1, random=True)
def sample(frames: "dict[str, pl.DataFrame]", params: SampleParams, draw: Draw) -> "pl.DataFrame":
    """Keep so many rows at random, each class in proportion.

    Rows are ranked at random within their class, and those of the lowest rank, as a share of the
    class, are kept: no class is off its share by more than one row. Without a `label`, all are one class.
    """
    import polars as pl

    frame = frames["samples"]
    ranks = draw.order(frame["sample_id"])
    place = pl.Series("place", ranks.argsort())
    label = frame["label"] if "label" in frame.columns else pl.Series("label", [0] * frame.height)
    share = pl.DataFrame({"place": place, "label": label}).select((pl.col("place").rank("ordinal").over("label") - 0.5) / pl.len().over("label")).to_series()
    kept = pl.DataFrame({"share": share, "place": place}).select(pl.struct("share", "place").rank("ordinal") <= params.rows).to_series()
    reason = pl.select(pl.when(kept).then(None).otherwise(pl.lit(f"not among the {params.rows} rows of the trial"))).to_series()
    return pl.DataFrame({"reason": reason})
