"""prune.random_like: a random choice of the size of another one, class by class: a control's twin."""

from typing import TYPE_CHECKING

from stillroom.operators import Draw, Input, Params, select

if TYPE_CHECKING:
    import polars as pl


@select(version=1, random=True, hidden=True, inputs={"samples": Input(), "like": Input(reference=True)})
def random_like(frames: "dict[str, pl.DataFrame]", params: Params, draw: Draw) -> "pl.DataFrame":
    """Keep at random as many rows of each class as `like` has; without labels, as many in all."""
    import polars as pl

    samples, like = frames["samples"], frames["like"]
    by = "label" if "label" in samples.columns and "label" in like.columns else None
    ranks = pl.Series("rank", draw.order(samples["sample_id"]).argsort())
    if by is None:
        kept = ranks < like.height
    else:
        wanted = like.group_by("label").len(name="wanted")
        table = pl.DataFrame({"label": samples["label"], "rank": ranks}).join(wanted, on="label", how="left", nulls_equal=True, maintain_order="left")
        kept = table.select(pl.col("rank").rank("ordinal").over("label") <= pl.col("wanted").fill_null(0)).to_series()
    return pl.select(pl.when(kept).then(None).otherwise(pl.lit("not drawn")).alias("reason"))
