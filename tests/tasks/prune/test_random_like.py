"""prune.random_like: of each class as many as the other choice has, and at random."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from stillroom.operators import Draw, Params
from tasks.prune.random_like import random_like

LABELS = st.lists(st.sampled_from([0, 1, None]), max_size=40)


def samples(labels: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"{place:04}" for place in range(len(labels))], "label": labels}, schema={"sample_id": pl.String, "label": pl.Int64})


def kept(pool: pl.DataFrame, like: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    reasons = random_like({"samples": pool, "like": like}, Params(), Draw(seed, "prune.random_like"))["reason"]
    return pool.filter(reasons.is_null())


@given(pool=LABELS, like=LABELS)
def test_each_class_has_as_many_rows_as_in_the_other_choice(pool, like):
    found = kept(samples(pool), samples(like))["label"].to_list()
    assert {label: found.count(label) for label in (0, 1, None)} == {label: min(pool.count(label), like.count(label)) for label in (0, 1, None)}


@given(pool=LABELS, like=LABELS)
def test_without_labels_only_the_number_counts(pool, like):
    assert kept(samples(pool).drop("label"), samples(like)).height == min(len(pool), len(like))


def test_the_choice_hangs_on_ids_and_seed_and_not_on_the_other_choices_rows():
    pool = samples([0] * 60)
    drawn = set(kept(pool, samples([0] * 20))["sample_id"])
    assert drawn == set(kept(pool.reverse(), samples([0] * 20).reverse())["sample_id"])
    assert drawn != set(kept(pool, samples([0] * 20), seed=1)["sample_id"])
    assert drawn > set(kept(pool, samples([0] * 10))["sample_id"])


def test_every_row_has_the_same_chance():
    # 400 seeds draw each of 10 rows 160 times in expectation, with a standard deviation of 9.8.
    pool, like = samples([0] * 10), samples([0] * 4)
    drawn = [name for seed in range(400) for name in kept(pool, like, seed)["sample_id"]]
    assert all(110 < drawn.count(name) < 210 for name in pool["sample_id"])
