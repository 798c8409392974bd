"""What tests of choices share: rows with vectors, and an operator run on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from stillroom.operators import Draw

__all__ = ["choose", "kept"]


def choose(
    operator: Any,
    vectors_ND: np.ndarray,
    labels: list[int] | None = None,
    ids: list[str] | None = None,
    columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    seed: int = 0,
    **params: object,
) -> pl.DataFrame:
    """The rows with what became of them; they are called sample0000, sample0001, … unless `ids` says otherwise."""
    names = ids or [f"sample{place:04}" for place in range(len(vectors_ND))]
    frame = pl.DataFrame({"sample_id": names, "label": labels or [0] * len(vectors_ND), **(columns or {})}, strict=False)
    asked = operator.params(**params)
    offer = {"frames": {"samples": frame}, "params": asked}
    if wanted := operator.inputs["samples"].vector_columns(asked):
        offer["vectors"] = {wanted[0]: vectors_ND}
    if operator.random:
        offer["draw"] = Draw(seed, operator.name)
    return frame.hstack(operator(**offer).collect())


def kept(chosen: pl.DataFrame) -> set[str]:
    """The ids of the rows that stay."""
    return set(chosen.filter(pl.col("reason").is_null())["sample_id"])
