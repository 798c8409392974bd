"""What a select operator says of the rows: a line for each, checked, and worked through in windows."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from stillroom.errors import StageError
from stillroom.operators import Input, Params
from tasks.specs import StageSpec

__all__ = ["Lines", "frame_columns"]

WINDOW_ROWS = 65_536


def frame_columns(declared: Input, params: Params, schema: pa.Schema) -> list[str]:
    """The light columns that a select operator sees of an input: those that it requires, and split, label and source where they are."""
    vectors = declared.vector_columns(params)
    columns = [name for name in dict.fromkeys(["sample_id", *declared.columns(params)]) if name not in vectors]
    return columns + [name for name in ("split", "label", "source") if name in schema.names and name not in columns]


class Lines:
    """The lines of a select operator, one for each row of its inputs.

    Args:
        spec: the stage.
        given: what the operator gave back, eager or lazy; see `stillroom.operators.select`.
        expected: how many rows each input has.

    Raises:
        StageError: a row has no line or two, a line has no row, or a lazy frame comes out in another order each time.
    """

    def __init__(self, spec: StageSpec, given: pl.DataFrame | pl.LazyFrame, expected: Mapping[str, int]) -> None:
        self._spec, self._given, self._expected = spec, given.lazy(), expected
        self.columns = self._given.collect_schema().names()
        self.count = int(self._given.select(pl.len()).collect().item())
        self._stays_B = np.zeros(self.count, bool)
        self._met: dict[int, int] = {}
        self._check()

    def left(self) -> Iterator[pl.DataFrame]:
        """The lines of rows that leave, in windows: input, row, reason and kind, never null. To be gone through before `kept`."""
        for start, window in self._windows("reason", "kind"):
            leaves = window["reason"].is_not_null()
            self._stays_B[start : start + window.height] = ~leaves.to_numpy()
            leaving = window.filter(leaves)
            kind = pl.col("kind").cast(pl.String).fill_null("dropped") if "kind" in leaving.columns else pl.lit("dropped")
            yield leaving.with_columns(pl.col("reason").cast(pl.String), kind.alias("kind"))

    def kept(self, added: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The lines of rows that stay, in windows: input, row, and the added columns."""
        for start, window in self._windows(*added):
            if (staying := window.filter(pl.Series(self._stays_B[start : start + window.height]))).height:
                yield staying

    def _windows(self, *columns: str) -> Iterator[tuple[int, pl.DataFrame]]:
        wanted = [name for name in dict.fromkeys(["input", "row", *columns]) if name in self.columns]
        met = dict.fromkeys(self._expected, 0)
        for start in range(0, self.count, WINDOW_ROWS):
            # Where nothing is wanted nothing is collected: Polars would work a column out, perhaps the reasons, to know how long it is.
            window = self._given.select(wanted).slice(start, WINDOW_ROWS).collect() if wanted else pl.DataFrame()
            if "input" not in window.columns:
                alone = pl.repeat(next(iter(met)), min(WINDOW_ROWS, self.count - start), eager=True).alias("input")
                window = pl.DataFrame([alone, *window])
            if "row" not in window.columns:
                first = pl.col("input").cast(pl.String).replace_strict(met, default=0, return_dtype=pl.Int64)
                window = window.with_columns((first + pl.int_range(pl.len()).over("input")).alias("row"))
                for name, rows in window["input"].value_counts().iter_rows():
                    met[name] = met.get(name, 0) + rows
            # A lazy frame that sorts or groups may come out otherwise each time; then a line would say of one row what another is.
            rows = int(window.select(pl.struct("input", "row", pl.int_range(pl.len()).alias("place")).hash(seed=0).sum()).item())
            if self._met.setdefault(start, rows) != rows:
                problem = f"operator '{self._spec.operator}' gave a lazy frame whose lines come in another order each time"
                raise StageError(self._spec.stage, problem, "collect it before it is given back")
            yield start, window

    def _check(self) -> None:
        spec = self._spec
        seen = {name: np.zeros(rows, bool) for name, rows in self._expected.items()}
        for _, window in self._windows():
            for (name,), group in window.partition_by("input", as_dict=True).items():
                height = self._expected.get(str(name), 0)
                if not group["row"].is_between(0, height - 1).all(ignore_nulls=False):
                    problem = f"operator '{spec.operator}' names rows that input '{name}' hasn't"
                    raise StageError(spec.stage, problem, f"rows count from 0 to {height - 1}")
                seen[str(name)][group["row"].to_numpy()] = True
        unique = {name: int(rows.sum()) for name, rows in seen.items()}
        if unique != self._expected or self.count != sum(self._expected.values()):
            accounted = {name: rows for name, rows in unique.items() if rows}
            problem = f"operator '{spec.operator}' accounted for {accounted} of {dict(self._expected)} rows"
            raise StageError(spec.stage, problem, "an operator must give a line for every row")
