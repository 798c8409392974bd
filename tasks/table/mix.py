"""table.mix: several tables as one."""

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Draw, Input, Params, select
from stillroom.repeats import hashed, met_twice

if TYPE_CHECKING:
    import polars as pl

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MixParams(Params):
    """Parameters of `table.mix`."""

    weights: dict[str, Weight] | list[Weight] | None = Field(
        default=None, description="Proportions by input name (or in the order of a list): what is over its share leaves at random. Left out, all rows stay."
    )


@select(version=1, inputs={"*": Input()}, random=True)
def mix(frames: "dict[str, pl.DataFrame]", params: MixParams, draw: Draw) -> "pl.DataFrame":
    """Put the rows of all inputs one after another, in the order of the inputs' names (of a list: its own).

    Of two rows with one id the later is dropped. Under `weights` the mix is then the largest that has
    these proportions: with N_i rows and share p_i, min_i(N_i / p_i) rows in all, each input's number
    rounded. Which rows of an input stay depends on seed and ids alone.

    Raises:
        InputError: weights don't name just the inputs, or one of these is empty.
    """
    import polars as pl

    names = sorted(frames, key=_place)
    # Small types, and text only where rows are read: millions of lines have to fit.
    lines = pl.concat([frames[name].select("sample_id", pl.lit(name, pl.Enum(names)).alias("input")) for name in names])
    reasons = [f"duplicate of a row in {name}" for name in names]
    said_L = np.full(lines.height, -1, np.int32)
    first = pl.col("input").first().over("sample_id").to_physical()
    ids = hashed(lines["sample_id"])
    if len(twice := met_twice([ids])):
        alike = lines.with_row_index("line").filter(pl.Series(np.isin(ids, twice)))
        twins = alike.select("line", first.alias("first"), twin=~pl.col("sample_id").is_first_distinct()).filter("twin")
        said_L[twins["line"].to_numpy()] = twins["first"].to_numpy()
    if params.weights is not None:
        _over_their_shares(lines, _shares(params.weights, names), draw, said_L, reasons)
    said = pl.Series("reason", said_L)
    return lines.with_columns(said.set(said < 0, None).cast(pl.UInt32).cat.to(pl.Enum(reasons)))


def _place(name: str) -> tuple[bool, int, str]:
    # The inputs of a list are called 0, 1, 2 … 10. The order they come in is no part of a fingerprint.
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _shares(weights: Mapping[str, float] | list[float], names: list[str]) -> dict[str, Fraction]:
    """Shares that sum to 1, exact."""
    named = weights if isinstance(weights, Mapping) else {str(place): weight for place, weight in enumerate(weights)}
    if named.keys() != set(names):
        raise InputError("weights", f"are for {', '.join(named)}, and the inputs are {', '.join(names)}", "give one weight for each input")
    exact = {name: Fraction(str(named[name])) for name in names}
    return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def _over_their_shares(lines: "pl.DataFrame", shares: Mapping[str, Fraction], draw: Draw, said_L: np.ndarray, reasons: list[str]) -> None:
    """Add a reason for each input, and say it of the rows that are over its share."""
    left = {name: np.flatnonzero((lines["input"] == name).to_numpy() & (said_L < 0)) for name in shares}
    if empty := [name for name, rows in left.items() if not len(rows)]:
        raise InputError("weights", f"input '{empty[0]}' has no rows of its own, so its share can't be met")
    total = min(len(rows) / shares[name] for name, rows in left.items())
    for name, rows in left.items():
        # Halves upwards, so that it doesn't depend on whether the number is even.
        keep = int(total * shares[name] + Fraction(1, 2))
        said_L[rows[draw.order(lines["sample_id"].gather(rows))[keep:]]] = len(reasons)
        reasons.append(f"over the share of {name}: {keep:,} of {len(rows):,} rows stay")
