"""The budget of every selection: how many rows stay, and how many of each class."""

import inspect
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction as Ratio
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from schemas.quantities import Bytes, Fraction
from stillroom.errors import InputError
from stillroom.operators import Params

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Budget", "Pool", "Verdicts", "by_bytes", "pools", "quotas", "rounded"]


class Budget(Params):
    """The parameters that selections share: exactly one of `keep`, `keep_rows`, `images_per_class`, `keep_bytes`."""

    keep: Fraction | None = Field(default=None, description="Share of the table's rows that stay, as 10% or 0.1; rounded to whole rows, one at least.")
    keep_rows: int | None = Field(default=None, ge=1, description="Number of rows that stay; all where there are fewer.")
    images_per_class: int | None = Field(default=None, ge=1, description="Number of rows of each class that stay; all of a class that has fewer.")
    keep_bytes: Bytes | None = Field(
        default=None, description="Bytes of the encoded images that stay, at most, as 200MB: one row more would exceed it. Needs `image_bytes`."
    )
    balance: Literal["label", "proportional", "none"] = Field(
        default="label",
        description="label: the same number of each class; proportional: each class its share of the rows; none: classes don't count.",
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if sum(budget is not None for budget in (self.keep, self.keep_rows, self.images_per_class, self.keep_bytes)) != 1:
            raise ValueError("give exactly one of keep, keep_rows, images_per_class, keep_bytes")
        if self.keep == 0:
            raise ValueError("keep: 0 leaves no row")
        if self.images_per_class is not None and self.balance != "label":
            raise ValueError(f"images_per_class is a number for each class; balance: {self.balance} contradicts it")
        return self

    def columns(self) -> list[str]:
        """The columns that this budget needs."""
        return [*([] if self.balance == "none" else ["label"]), *([] if self.keep_bytes is None else ["image_bytes"])]


class Pool:
    """Rows that compete with each other: a class, or the whole table.

    `name` is for reasons ("class 3"); `rows` (whole numbers, [R]) are positions in the frame.
    """

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.name, self.rows = name, rows


class Verdicts:
    """Which rows leave, why, and whether by choice or for a fault; rows without a label leave where the budget goes by it.

    Reasons are put into words when somebody reads them: of a row four bytes are held, where its words would take a hundred.

    Args:
        samples: the rows, N.
        budget: what the recipe asks for.
        numbers: what a row's reason may tell of it, [N] each; they may be filled in later.
    """

    def __init__(self, samples: "pl.DataFrame", budget: Budget, *numbers: np.ndarray) -> None:
        self._said_N = np.zeros(samples.height, np.int32)  # which of `_reasons`; 0: it stays
        self._numbers = {f"number {place}": values_N for place, values_N in enumerate(numbers)}
        self._reasons: list[str | Callable[..., str]] = [""]
        self._faults: list[int] = []
        if budget.balance != "none":
            self.drop(samples["label"].is_null().arg_true().to_numpy(), f"no label, which balance: {budget.balance} goes by")

    def drop(self, rows: np.ndarray, reason: str | Callable[..., str]) -> None:
        """Not chosen: one reason for all of these positions, or what makes that of a row from its `numbers`."""
        self._said_N[rows] = len(self._reasons)
        self._reasons.append(reason)

    def reject(self, rows: np.ndarray, reason: str) -> None:
        """Not fit to be judged: counts towards the recipe's `max_rejects`."""
        self._faults.append(len(self._reasons))
        self.drop(rows, reason)

    def frame(self, **added: "pl.Series") -> "pl.LazyFrame":
        """A line per row: `reason` and `kind`, both null where the row stays, and the `added` columns."""
        import polars as pl

        said = pl.col("said")
        kind = pl.when(said.is_in(self._faults)).then(pl.lit("rejected")).when(said > 0).then(pl.lit("dropped"))
        reason = pl.struct("said", *self._numbers).map_batches(self._worded, pl.String, is_elementwise=True)
        lines = pl.DataFrame({"said": self._said_N, **self._numbers, **added})
        return lines.lazy().select(reason.alias("reason"), kind.alias("kind"), *added)

    def _worded(self, lines: "pl.Series") -> "pl.Series":
        """The reasons of some lines."""
        import polars as pl

        told = np.full(len(lines), None, object)
        held = lines.struct.unnest()
        for said in held["said"].unique():
            reason, where = self._reasons[said], (held["said"] == said).arg_true().to_numpy()
            if callable(reason):
                numbers = [held[name].gather(where).to_list() for name in self._numbers]
                told[where] = [reason(*row) for row in zip(*numbers, strict=True)]
            elif said:
                told[where] = reason
        return pl.Series(told.tolist(), dtype=pl.String)


def by_bytes(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Let a choice by rows be asked for bytes: of all numbers of rows, take one that fits and whose successor doesn't.

    The choice is made again and again, each time for so many rows as the last ones let expect: some
    ten times in a million rows. A ranking's bytes grow with its rows; of other choices, which may
    take smaller images for more rows, this is still a number that fits and to which one row can't be added.
    """

    @wraps(choose)
    def within(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(choose).bind(*args, **kwargs).arguments
        params, samples = given["params"], given["frames"]["samples"]
        if params.keep_bytes is None:
            return choose(**given)
        sizes_N = samples["image_bytes"].fill_null(0).to_numpy()

        def chosen(rows: int) -> "pl.LazyFrame":
            return choose(**given | {"params": params.model_copy(update={"keep_bytes": None, "keep_rows": rows})})

        return chosen(_rows_within(params.keep_bytes, sizes_N, chosen))

    return within


def _rows_within(budget: int, sizes_N: np.ndarray, chosen: "Callable[[int], pl.LazyFrame]") -> int:
    """A number of rows whose images fit, where those of one more don't.

    Raises:
        InputError: not even one fits.
    """
    import polars as pl

    fits, fitting, over, exceeding = 0, 0, len(sizes_N), int(sizes_N.sum())
    if exceeding <= budget:
        return over
    tries = 0
    while over - fits > 1:
        tries += 1
        # By the mean size in between; every third time by halves, so that no run of odd sizes makes it creep.
        expected = fits + (budget - fitting) * (over - fits) // max(1, exceeding - fitting) if tries % 3 else (fits + over) // 2
        rows = min(max(expected, fits + 1), over - 1)
        stays_N = chosen(rows).select(pl.col("kind").is_null()).collect().to_series().to_numpy()
        taken = int(sizes_N[stays_N].sum())
        if taken <= budget:
            fits, fitting = rows, taken
        else:
            over, exceeding = rows, taken
    if not fits:
        raise InputError("keep_bytes", f"{budget} bytes hold no image: the first to stay takes {exceeding}", "give more")
    return fits


def pools(samples: "pl.DataFrame", budget: Budget) -> list[Pool]:
    """The classes in the order of their labels, or one pool of all rows; rows without a label are in none."""
    if budget.balance == "none":
        return [Pool("the table", np.arange(samples.height))]
    groups = samples.select("label").with_row_index("row").drop_nulls().group_by("label").agg("row").sort("label")
    return [Pool(f"class {label}", rows.to_numpy()) for label, rows in zip(groups["label"], groups["row"], strict=True)]


def quotas(budget: Budget, table_rows: int, sizes: list[int], available: list[int]) -> list[int]:
    """How many rows of each pool stay.

    `images_per_class` is a promise to each class: one that has fewer keeps all, and nobody gets the
    rest. `keep` and `keep_rows` are promises on the sum: what a small class can't use goes to the
    others, in the same proportion. Numbers that don't divide are settled by largest remainder, ties
    by the larger pool, then by the lower label. Never more than are available.

    Args:
        budget: what the recipe asks for.
        table_rows: rows of the table, of which `keep` is a share.
        sizes: rows of each pool.
        available: those of them that may stay (cut off, or without a score, they may not).
    """
    if budget.images_per_class is not None:
        return [min(budget.images_per_class, rows) for rows in available]
    wanted = budget.keep_rows if budget.keep_rows is not None else max(1, rounded(budget.keep or 0, table_rows))
    weights = sizes if budget.balance == "proportional" else [1] * len(sizes)
    kept, open_pools, left = [0] * len(sizes), list(range(len(sizes))), min(wanted, sum(available))
    while full := [pool for pool in open_pools if available[pool] <= _ideal(pool, open_pools, weights, left)]:
        open_pools = [pool for pool in open_pools if pool not in full]
        for pool in full:
            kept[pool] = available[pool]
            left -= available[pool]
    ideals = {pool: _ideal(pool, open_pools, weights, left) for pool in open_pools}
    for pool, ideal in ideals.items():
        kept[pool] = int(ideal)
    by_remainder = sorted(open_pools, key=lambda pool: (int(ideals[pool]) - ideals[pool], -sizes[pool], pool))
    for pool in by_remainder[: left - sum(kept[pool] for pool in open_pools)]:
        kept[pool] += 1
    return kept


def rounded(share: float, rows: int) -> int:
    """A share of `rows` in whole rows, halves up; by the share's first 12 digits, so that 29% of 50 is 14.5 and not a little less."""
    return int((Decimal(f"{share:.12g}") * rows).to_integral_value(ROUND_HALF_UP))


def _ideal(pool: int, open_pools: list[int], weights: list[int], left: int) -> Ratio:
    return Ratio(left * weights[pool], sum(weights[other] for other in open_pools))
