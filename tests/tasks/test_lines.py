"""Lines of a select operator: numbered, checked, and worked through in windows as if there were none."""

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import StageError
from tasks import lines as module
from tasks.lines import Lines
from tasks.specs import StageSpec

SPEC = StageSpec(
    store="s", stage="chosen", operator="prune.mine", params={}, seed=0, fingerprint="f", parts={}, table="t", schema=pa.schema([]), inputs={},
    scores_fingerprint="", scores_parts={}, device="cpu", retries=0, trial=False,
)  # fmt: skip
GIVEN = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, "too far", "twin"]), st.sampled_from([None, "rejected", "dropped"])), min_size=1)


def frame(rows: list[tuple[str, str | None, str | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, {"input": pl.String, "reason": pl.String, "kind": pl.String}, orient="row").with_columns(size=pl.int_range(pl.len()))


@given(GIVEN, st.integers(1, 7), st.booleans())
def test_windows_give_what_one_look_would(rows, window, lazy):
    given_, counts = frame(rows), {name: sum(row[0] == name for row in rows) for name in ("a", "b")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_ROWS", window)
        lines = Lines(SPEC, given_.lazy() if lazy else given_, counts)
        left, kept = list(lines.left()), list(lines.kept(["size"]))
    numbered = given_.with_columns(row=pl.int_range(pl.len()).over("input"))
    gone = numbered.filter(pl.col("reason").is_not_null()).with_columns(pl.col("kind").fill_null("dropped"))
    told = ["input", "row", "reason", "kind"]
    assert [row for part in left for row in part.select(told).rows()] == gone.select(told).rows()
    stay = numbered.filter(pl.col("reason").is_null()).select("input", "row", "size").rows()
    assert [row for part in kept for row in part.select("input", "row", "size").rows()] == stay
    assert all(part.height for part in kept)


def test_lines_without_input_and_row_are_of_the_only_input_in_its_order():
    lines = Lines(SPEC, pl.DataFrame({"reason": [None, "far", None]}, {"reason": pl.String}), {"samples": 3})
    assert [part.select("input", "row", "reason", "kind").rows() for part in lines.left()] == [[("samples", 1, "far", "dropped")]]
    assert [part.rows() for part in lines.kept([])] == [[("samples", 0), ("samples", 2)]]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([0, 1, 1], "accounted for {'samples': 2} of {'samples': 3} rows"),
        ([0, 1], "accounted for {'samples': 2} of {'samples': 3} rows"),
        ([0, 1, 2, 2], "accounted for {'samples': 3} of {'samples': 3} rows"),
        ([0, 1, 3], "names rows that input 'samples' hasn't; rows count from 0 to 2"),
        ([0, 1, None], "names rows that input 'samples' hasn't"),
    ],
)
def test_every_row_has_one_line(rows, told):
    with pytest.raises(StageError) as error:
        Lines(SPEC, pl.DataFrame({"reason": [None] * len(rows), "row": rows}, {"reason": pl.String, "row": pl.Int64}), {"samples": 3})
    assert told in str(error.value)


def test_a_lazy_frame_in_another_order_each_time_is_refused():
    orders = iter([0, 1, 2, 3, 4, 5])
    base = pl.DataFrame({"row": range(200), "reason": [None] * 200}, {"row": pl.Int64, "reason": pl.String})
    given_ = base.lazy().map_batches(lambda part: part.sample(fraction=1, shuffle=True, seed=next(orders)) if part.height else part, schema=base.schema)
    with pytest.raises(StageError, match="another order each time"):
        list(Lines(SPEC, given_, {"samples": 200}).left())


def test_each_reason_is_put_into_words_once_and_none_that_stays():
    worded = []

    def say(numbers: pl.Series) -> pl.Series:
        worded.extend(numbers.drop_nulls())
        return pl.Series([None if number is None else f"number {number}" for number in numbers], dtype=pl.String)

    given_ = pl.DataFrame({"number": [1, None, 3, None]}).lazy().select(reason=pl.col("number").map_batches(say, pl.String, is_elementwise=True))
    lines = Lines(SPEC, given_, {"samples": 4})
    assert [row for part in lines.left() for row in part["reason"]] == ["number 1", "number 3"]
    assert [row for part in lines.kept([]) for row in part["row"]] == [1, 3]
    assert sorted(worded) == [1, 3]  # polars may give a window to several threads
