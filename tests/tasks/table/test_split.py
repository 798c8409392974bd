"""table.split: shares are met, a row keeps its split when the data grows, groups stay together."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillroom.errors import InputError
from stillroom.fields import splits_of
from stillroom.operators import Draw
from tasks.table.split import SplitParams, split

DRAW = Draw(7, "table.split")
IDS = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=40)


def splits(ids: list[str], draw: Draw = DRAW, columns: dict[str, object] | None = None, **params: object) -> list[str]:
    batch = pa.record_batch({"sample_id": pa.array(ids, pa.string())} | (columns or {}))
    rows = split(batch, SplitParams(**params), draw)
    assert rows.dropped is None
    assert rows.rejected is None
    assert rows.batch["sample_id"].to_pylist() == ids
    return rows.batch["split"].to_pylist()


def test_shares_are_met_on_average():
    found = splits([str(row) for row in range(20_000)], validation="5%", test=0.1)
    # Four standard deviations of a binomial share.
    assert found.count("validation") / 20_000 == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 20_000) ** 0.5)
    assert found.count("test") / 20_000 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 20_000) ** 0.5)


@given(IDS, st.data())
def test_a_row_keeps_its_split_when_the_data_grows_or_changes_order(ids, data):
    before = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    whole = dict(zip(ids, splits(ids, validation=0.3, test=0.3), strict=True))
    assert splits(before, validation=0.3, test=0.3) == [whole[sample_id] for sample_id in before]


@given(st.lists(st.integers(0, 5) | st.none(), min_size=1, max_size=40))
def test_groups_stay_together_and_rows_without_one_go_alone(groups):
    ids = [f"sample{row}" for row in range(len(groups))]
    found = splits(ids, columns={"subject": pa.array(groups, pa.int64())}, group="subject", validation=0.3, test=0.3)
    alone = splits(ids, validation=0.3, test=0.3)
    together: dict[int, str] = {}
    for group, name, own in zip(groups, found, alone, strict=True):
        assert name == (own if group is None else together.setdefault(group, name))


def test_a_group_draws_for_itself_and_not_as_a_sample_of_that_name():
    names = [str(row) for row in range(200)]
    grouped = splits([f"sample{name}" for name in names], columns={"subject": pa.array(names)}, group="subject", test=0.5)
    assert grouped != splits(names, test=0.5)


def test_another_seed_splits_otherwise():
    ids = [str(row) for row in range(200)]
    assert splits(ids) != splits(ids, draw=Draw(8, "table.split"))


def test_more_validation_takes_from_train_alone():
    ids = [str(row) for row in range(500)]
    less, more = splits(ids, validation=0.1, test=0.2), splits(ids, validation=0.4, test=0.2)
    moved = {pair for pair in zip(less, more, strict=True) if pair[0] != pair[1]}
    assert moved == {("train", "validation")}


def test_a_given_split_is_taken_and_its_train_cut_further():
    ids = [str(row) for row in range(400)]
    fold = pa.array(["test" if row % 4 == 0 else "train" for row in range(400)])
    assert splits(ids, columns={"split": fold}, given={"column": "split"}) == fold.to_pylist()
    cut = splits(ids, columns={"split": fold}, given={"column": "split"}, validation="20%")
    assert [name == "test" for name in cut] == [name == "test" for name in fold.to_pylist()]
    assert 30 < cut.count("validation") < 90


def test_a_given_value_is_mapped_and_an_unknown_one_is_an_error():
    columns = {"fold": pa.array([0, 1, 2])}
    mapping = {"0": "test", "1": "validation", "2": "train"}
    assert splits(["a", "b", "c"], columns=columns, given={"column": "fold", "mapping": mapping}) == ["test", "validation", "train"]
    with pytest.raises(InputError, match=r"given.mapping of column 'fold': has no split for '2'; it has 0, 1"):
        splits(["a", "b", "c"], columns=columns, given={"column": "fold", "mapping": {"0": "test", "1": "train"}})
    with pytest.raises(InputError, match="has no split for null"):
        splits(["a"], columns={"fold": pa.array([None], pa.string())}, given={"column": "fold"})


def test_the_schema_says_which_splits_there_can_be():
    def possible(**params: object) -> set[str]:
        return set(splits_of(split.added(SplitParams(**params), {})["split"]))

    assert possible() == {"train", "validation", "test"}
    assert possible(test=0) == {"train", "validation"}
    assert possible(given={"column": "fold", "mapping": {"a": "train", "b": "test"}}) == {"train", "test"}
    assert possible(given={"column": "fold", "mapping": {"a": "train", "b": "test"}}, validation=0.1) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"test": 5}, "less than or equal to 1"),
        ({"given": {"column": "a", "mapping": {"x": "dev"}}}, "mapping"),
    ],
)
def test_parameters_are_checked(wrong, problem):
    with pytest.raises(ValidationError, match=problem):
        SplitParams(**wrong)


def test_a_column_that_can_not_group_is_named():
    with pytest.raises(InputError, match="column 'weight': is double"):
        splits(["a"], columns={"weight": pa.array([0.5])}, group="weight")
