"""prune.ccs: exact budgets, even strata, the hardest cut off; and what planted noise does to it."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.operators import Draw
from tasks.prune.by_score import ByScoreParams, by_score
from tasks.prune.ccs import CcsParams, ccs, even_shares, strata
from tests.tasks.prune.choosing import kept


def choose(scores: list[float | None], labels: list[int] | None = None, seed: int = 0, ids: list[str] | None = None, **params: object) -> pl.DataFrame:
    frame = pl.DataFrame({"sample_id": ids or [f"sample{place:04}" for place in range(len(scores))], "label": labels or [0] * len(scores), "el2n": scores})
    return frame.hstack(ccs({"samples": frame}, CcsParams(score="el2n", **params), Draw(seed, "prune.ccs")).collect())


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.data())
def test_shares_are_even_from_the_smallest_stratum_upwards_and_exact(sizes, data):
    wanted = data.draw(st.integers(0, sum(sizes)))
    kept_S = even_shares(np.array(sizes), wanted)
    assert kept_S.sum() == wanted
    assert (kept_S <= sizes).all()
    left_over = kept_S[kept_S < sizes]
    # Whoever gives all that it has, has no more than a share of those that don't.
    assert not len(left_over) or (left_over.max() - left_over.min() <= 1 and (kept_S[kept_S == sizes] <= left_over.min() + 1).all())


def test_strata_have_equal_width_and_infinity_the_outermost():
    assert strata(np.array([0.0, 0.24, 0.26, 0.5, 0.99, 1.0, np.inf, -np.inf]), 4).tolist() == [0, 0, 1, 2, 3, 3, 3, 0]
    assert strata(np.array([2.0, 2.0, np.inf]), 4).tolist() == [0, 0, 3]


def test_every_stratum_gives_its_share_whatever_its_size():
    scores = [0.05] * 80 + [0.55] * 16 + [0.95] * 4
    chosen = choose(scores, keep_rows=16, strata=10)
    assert chosen.filter(pl.col("reason").is_null())["el2n"].value_counts().sort("el2n")["count"].to_list() == [6, 6, 4]
    assert chosen["reason"].drop_nulls()[0] == "el2n 0.05: stratum 1 of 10 in class 0, of whose 80 rows 6 are drawn"


def test_the_hardest_leave_first_at_the_end_that_is_hard():
    scores = [place / 100 for place in range(100)]
    chosen = choose(scores, keep_rows=50, cut_off=0.2)
    cut = chosen.filter(pl.col("reason").str.contains("cut off"))
    assert cut["el2n"].to_list() == scores[80:]
    assert cut["reason"][0] == "el2n 0.8: the hardest 20 of 100 in class 0 are cut off"
    assert chosen.filter(pl.col("reason").is_null()).height == 50
    low = choose(scores, keep_rows=50, cut_off=0.2, hard="low")
    assert low.filter(pl.col("reason").str.contains("cut off"))["el2n"].to_list() == scores[:20]


def test_rows_without_a_score_are_rejected_and_their_place_goes_to_others():
    chosen = choose([0.1, None, float("nan"), 0.9], keep_rows=2)
    assert chosen["kind"].to_list() == [None, "rejected", "rejected", None]


def test_the_choice_hangs_on_seed_and_ids_alone():
    scores = np.random.default_rng(0).random(200).tolist()
    labels = [row % 2 for row in range(200)]
    first = choose(scores, labels, keep_rows=40)
    assert first.filter(pl.col("reason").is_null())["label"].value_counts()["count"].to_list() == [20, 20]
    order = np.random.default_rng(1).permutation(200)
    again = choose([scores[row] for row in order], [labels[row] for row in order], ids=[f"sample{row:04}" for row in order], keep_rows=40)
    assert kept(again) == kept(first)
    assert kept(choose(scores, labels, seed=1, keep_rows=40)) != kept(first)


@pytest.mark.parametrize(("cut_off", "most"), [(0.0, 1.0), (0.1, 0.02)])
def test_planted_noise_lies_at_the_hard_end_and_leaves_with_it(cut_off, most):
    # A tenth of the rows has a wrong label, and so a large error; without a cut-off even strata keep more of them than chance would.
    rng = np.random.default_rng(0)
    noisy_N = np.arange(2000) % 10 == 0
    scores_N = np.where(noisy_N, rng.normal(1.2, 0.05, 2000), rng.gamma(2.0, 0.1, 2000))
    stays_N = choose(scores_N.tolist(), keep=0.2, cut_off=cut_off)["reason"].is_null().to_numpy()
    share = noisy_N[stays_N].mean()
    assert share <= most
    frame = pl.DataFrame({"sample_id": [f"{row:04}" for row in range(2000)], "label": [0] * 2000, "el2n": scores_N})
    hardest = by_score({"samples": frame}, ByScoreParams(score="el2n", order="hardest", keep=0.2)).collect()["reason"].is_null().to_numpy()
    assert noisy_N[hardest].mean() == pytest.approx(0.5, abs=0.01)
    assert cut_off or share > 0.1
