"""table.mix: one after another, nothing twice, and in the proportions asked for."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillroom.errors import InputError
from stillroom.operators import Draw
from tasks.table.mix import MixParams, mix

DRAW = Draw(7, "table.mix")


def run(inputs: dict[str, list[str]], draw: Draw = DRAW, **params: object) -> pl.DataFrame:
    frames = {name: pl.DataFrame({"sample_id": pl.Series(ids, dtype=pl.String)}) for name, ids in inputs.items()}
    lines = mix(frames, MixParams(**params), draw)
    assert {name: lines.filter(pl.col("input") == name)["sample_id"].to_list() for name in inputs} == inputs
    return lines


def kept(lines: pl.DataFrame) -> list[str]:
    return lines.filter(pl.col("reason").is_null())["sample_id"].to_list()


def test_rows_come_one_input_after_another_by_name():
    assert kept(run({"synthetic": ["s1", "s0"], "real": ["r0", "r1"]})) == ["r0", "r1", "s1", "s0"]


def test_inputs_of_a_list_keep_its_order():
    inputs = {str(place): [f"row{place}"] for place in range(11)}
    assert kept(run(inputs)) == [f"row{place}" for place in range(11)]


def test_of_two_rows_with_one_id_the_later_leaves_and_names_the_input():
    lines = run({"a": ["x", "y"], "b": ["y", "z"], "c": ["z", "x"]})
    assert lines["reason"].to_list() == [None, None, "duplicate of a row in a", None, "duplicate of a row in b", "duplicate of a row in a"]


def ids(name: str, count: int) -> list[str]:
    return [f"{name}{row}" for row in range(count)]


def test_weights_drop_at_random_from_what_is_over_its_share():
    lines = run({"real": ids("r", 100), "synthetic": ids("s", 900)}, weights={"real": 1, "synthetic": 2})
    left = lines.filter(pl.col("reason").is_not_null())
    assert Counter(lines.filter(pl.col("reason").is_null())["input"]) == {"real": 100, "synthetic": 200}
    assert set(left["reason"]) == {"over the share of synthetic: 200 of 900 rows stay"}
    assert sorted(kept(lines), key=lines["sample_id"].to_list().index) == kept(lines), "what stays keeps its order"


def test_what_stays_depends_on_seed_and_ids_alone():
    inputs = {"a": ids("a", 20), "b": ids("b", 200)}
    turned = {"b": inputs["b"][::-1], "a": inputs["a"]}
    stays = set(kept(run(inputs, weights={"a": 1, "b": 1})))
    assert set(kept(run(turned, weights={"a": 1, "b": 1}))) == stays
    assert set(kept(run(inputs, draw=Draw(8, "table.mix"), weights={"a": 1, "b": 1}))) != stays


def test_weights_count_what_is_left_without_duplicates():
    lines = run({"a": ["x", "y"], "b": ["x", "y", "z", "w"]}, weights={"a": 1, "b": 1})
    assert sorted(kept(lines)) == ["w", "x", "y", "z"]


@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.1, 0.5, 1, 2.5, 7])), min_size=1, max_size=4))
def test_proportions_are_met_to_a_row_and_as_many_rows_stay_as_can(inputs):
    names = [f"in{place}" for place in range(len(inputs))]
    lines = run(
        {name: ids(name, count) for name, (count, _) in zip(names, inputs, strict=True)},
        weights={name: weight for name, (_, weight) in zip(names, inputs, strict=True)},
    )
    stay = Counter(lines.filter(pl.col("reason").is_null())["input"])
    scale = min(count / weight for count, weight in inputs)
    for name, (_, weight) in zip(names, inputs, strict=True):
        assert abs(stay[name] - scale * weight) <= 0.5 + 1e-9
    assert any(stay[name] == count for name, (count, _) in zip(names, inputs, strict=True)), "one input stays whole"


def test_a_list_of_weights_goes_with_a_list_of_inputs():
    assert Counter(run({"0": ids("a", 8), "1": ids("b", 8)}, weights=[1, 3]).filter(pl.col("reason").is_null())["input"]) == {"0": 3, "1": 8}


def test_weights_must_fit_the_inputs():
    with pytest.raises(InputError, match="are for a, c, and the inputs are a, b; give one weight for each input"):
        run({"a": ["x"], "b": ["y"]}, weights={"a": 1, "c": 1})
    with pytest.raises(InputError, match="input 'b' has no rows of its own"):
        run({"a": ["x"], "b": ["x"]}, weights={"a": 1, "b": 1})
    with pytest.raises(ValidationError, match="greater than 0"):
        MixParams(weights={"a": 0})


def test_an_empty_input_without_weights_is_fine():
    assert kept(run({"a": ["x"], "b": []})) == ["x"]
