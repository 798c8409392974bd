"""What every choice keeps to: its budget in rows and bytes, fair shares, and no say for the order of rows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stillroom
from flows.build import build_recipe
from stillroom.errors import InputError
from tasks.prune.by_score import by_score
from tasks.prune.ccs import ccs
from tasks.prune.d2 import d2
from tasks.prune.facility_location import facility_location
from tasks.prune.herding import herding
from tasks.prune.k_center import k_center
from tasks.prune.k_medoids import k_medoids
from tasks.prune.moderate import moderate
from tasks.prune.random import random
from tasks.prune.robust_active import robust_active
from tests.tasks.prune.choosing import choose, kept

SCORE = {"score": "el2n", "cut_off": 0.1}
RANKINGS = {
    "random": (random, {}),
    "easiest": (by_score, {**SCORE, "order": "easiest"}),
    "hardest": (by_score, {**SCORE, "order": "hardest"}),
    "d2": (d2, {**SCORE, "neighbours": 4}),
    "herding": (herding, {}),
    "k_center": (k_center, {}),
    "moderate": (moderate, {}),
    "facility_location": (facility_location, {}),
    "robust_active": (robust_active, {"teacher_accuracy": 0.9, "balance": "label"}),
}
CHOICES = RANKINGS | {
    "middle": (by_score, {**SCORE, "order": "middle"}),
    "strata": (by_score, {**SCORE, "order": "strata"}),
    "ccs": (ccs, {**SCORE, "strata": 7}),
    "k_medoids": (k_medoids, {}),
}
# Three classes, one of them rare; vectors and scores with many ties.
LABELS = [0] * 60 + [1] * 35 + [2] * 5
RNG = np.random.default_rng(0)
POINTS_ND = RNG.integers(0, 6, (100, 3)).astype(np.float32)
SCORES = RNG.integers(0, 9, 100) / 10
SIZES = RNG.integers(100, 3000, 100)
every_choice = pytest.mark.parametrize("name", CHOICES)


def chosen(name: str, order: np.ndarray | None = None, sizes: np.ndarray = SIZES, **budget: object) -> pl.DataFrame:
    operator, params = CHOICES[name]
    rows = np.arange(100) if order is None else order
    columns = {"el2n": SCORES[rows], "margin": SCORES[rows], "image_bytes": sizes[rows]}
    return choose(operator, POINTS_ND[rows], [LABELS[row] for row in rows], [f"s{row:03}" for row in rows], columns, **{**params, **budget})


def per_class(frame: pl.DataFrame) -> list[int]:
    stay = frame.filter(pl.col("reason").is_null())["label"].to_list()
    return [stay.count(label) for label in range(3)]


@every_choice
def test_a_class_smaller_than_its_quota_gives_what_it_has_and_the_others_the_rest(name):
    rare = 5 if "cut_off" not in CHOICES[name][1] else 4  # half a row, rounded up, is cut off
    assert per_class(chosen(name, images_per_class=8)) == [8, 8, rare]
    assert per_class(chosen(name, keep_rows=45)) == ([20, 20, 5] if rare == 5 else [21, 20, 4])
    assert per_class(chosen(name, keep_rows=20, balance="proportional")) == [12, 7, 1]
    assert sum(per_class(chosen(name, keep_rows=20, balance="none"))) == 20


@every_choice
def test_the_order_of_rows_has_no_say_among_ties(name):
    found = kept(chosen(name, keep_rows=33))
    for seed in range(3):
        assert kept(chosen(name, np.random.default_rng(seed).permutation(100), keep_rows=33)) == found


@pytest.mark.parametrize("name", RANKINGS)
def test_a_larger_budget_keeps_what_a_smaller_one_keeps(name):
    sets = [kept(chosen(name, images_per_class=rows)) for rows in (1, 3, 8, 20, 40)]
    assert all(few < more for few, more in pairwise(sets))


@every_choice
@pytest.mark.parametrize("budget", [3000, 20_000, 90_000])
def test_bytes_are_filled_up_and_never_exceeded(name, budget):
    taken = chosen(name, keep_bytes=budget)
    stays = taken["reason"].is_null()
    assert taken.filter(stays)["image_bytes"].sum() <= budget
    more = chosen(name, keep_rows=int(stays.sum()) + 1)
    assert more.filter(pl.col("reason").is_null())["image_bytes"].sum() > budget
    # What stays, and what is said of it, is the choice of so many rows.
    assert taken.equals(chosen(name, keep_rows=int(stays.sum())))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=100), st.integers(1, 3000))
def test_bytes_of_a_ranking_for_any_sizes(sizes, budget):
    padded = np.array(sizes + [7] * (100 - len(sizes)))
    ranked = [padded[chosen("random", sizes=padded, keep_rows=rows)["reason"].is_null().to_numpy()].sum() for rows in (1, 100)]
    if ranked[0] > budget:
        with pytest.raises(InputError, match="keep_bytes: .* bytes hold no image"):
            chosen("random", sizes=padded, keep_bytes=budget)
        return
    stays = chosen("random", sizes=padded, keep_bytes=budget)["reason"].is_null()
    assert padded[stays.to_numpy()].sum() <= budget
    if ranked[1] > budget:
        more = chosen("random", sizes=padded, keep_rows=int(stays.sum()) + 1)["reason"].is_null()
        assert padded[more.to_numpy()].sum() > budget
    else:
        assert stays.all()


def test_an_image_that_is_missing_takes_no_bytes():
    columns = {"image_bytes": [100, None, 100]}
    found = choose(random, np.zeros((3, 1)), columns=columns, keep_bytes="0.2kB")
    assert kept(found) == {"sample0000", "sample0001", "sample0002"}


@pytest.mark.server
@pytest.mark.slow
def test_the_shipped_recipe_keeps_a_tenth_and_compares_it_with_a_random_one(tmp_path):
    quick = ["proof.student.steps=5", "proof.student.seeds=2", "proof.student.tune_seeds=1", "proof.student.learning_rates=[0.01]", "publish.promote=null"]
    result = build_recipe(Path(__file__).parents[3] / "recipes" / "selection_digits.yaml", tmp_path, quick)
    assert result.proof is not None
    assert {arm["arm"]: arm["rows"] for arm in result.proof["arms"]} == {"candidate.hard": 105, "control.hard": 105, "raw.hard": 1048}
    kept_rows = stillroom.open("selection-digits@1", store=tmp_path).table("train").frame(["label"])["label"].value_counts()["count"]
    assert set(kept_rows) == {10, 11}
