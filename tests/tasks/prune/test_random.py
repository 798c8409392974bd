"""prune.random: exact numbers, and a choice that hangs on ids, not on order."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from stillroom.operators import Draw
from tasks.prune.random import RandomParams, random


def samples(labels: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"sample{place:03}" for place in range(len(labels))], "label": labels}, schema_overrides={"label": pl.Int64})


def kept(frame: pl.DataFrame, seed: int = 0, **budget: object) -> set[str]:
    reasons = random({"samples": frame}, RandomParams(**budget), Draw(seed, "prune.random")).collect()["reason"]
    return set(frame.filter(reasons.is_null())["sample_id"])


def test_keeps_as_many_of_each_class_and_says_why_the_others_leave():
    frame = samples([0] * 30 + [1] * 20)
    reasons = random({"samples": frame}, RandomParams(images_per_class=5), Draw(0, "prune.random")).collect()["reason"]
    stay = frame.filter(reasons.is_null())["label"].value_counts().sort("label")
    assert stay["count"].to_list() == [5, 5]
    assert set(reasons.drop_nulls()) == {"not among the 5 drawn from 30 in class 0", "not among the 5 drawn from 20 in class 1"}


def test_without_balance_needs_no_label():
    params = RandomParams(keep="20%", balance="none")
    assert random.inputs["samples"].columns(params) == []
    assert len(kept(samples([0] * 50).drop("label"), keep="20%", balance="none")) == 10


def test_a_row_without_a_label_leaves_with_that_reason():
    reasons = random({"samples": samples([0, None, 0])}, RandomParams(keep_rows=2), Draw(0, "prune.random")).collect()["reason"]
    assert reasons.to_list() == [None, "no label, which balance: label goes by", None]


def test_seeds_differ_and_one_seed_repeats():
    frame = samples([0] * 100)
    assert kept(frame, keep_rows=10) == kept(frame, keep_rows=10) != kept(frame, seed=1, keep_rows=10)


def test_draws_evenly():
    # 500 seeds draw each of 10 rows 150 times in expectation, with a standard deviation of 10.
    frame = samples([0] * 10)
    counts = dict.fromkeys(frame["sample_id"], 0)
    for seed in range(500):
        for sample_id in kept(frame, seed, keep_rows=3):
            counts[sample_id] += 1
    assert all(abs(count - 150) < 50 for count in counts.values())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 60), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_rows(labels, wanted, shuffler):
    frame = samples(labels)
    order = list(range(frame.height))
    shuffler.shuffle(order)
    assert kept(frame, keep_rows=wanted) == kept(frame[order], keep_rows=wanted)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 30))
def test_a_larger_budget_keeps_what_a_smaller_one_keeps(labels, wanted):
    frame = samples(labels)
    assert kept(frame, images_per_class=wanted) <= kept(frame, images_per_class=wanted + 1)
