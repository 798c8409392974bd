"""prune.by_score: both ends and the middle of a ranking, ties, infinities and missing scores."""

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillroom.errors import InputError
from tasks.prune.by_score import ByScoreParams, by_score

NAN = float("nan")
LABELS_AND_SCORES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=26)


def scored(scores: list[float | None], labels: list[int] | None = None, name: str = "el2n") -> pl.DataFrame:
    ids = [chr(ord("a") + place) for place in range(len(scores))]
    return pl.DataFrame({"sample_id": ids, "label": labels or [0] * len(scores), name: pl.Series(scores, dtype=pl.Float32)})


def kept(frame: pl.DataFrame, **params: object) -> str:
    reasons = by_score({"samples": frame}, ByScoreParams(**{"score": "el2n", **params})).collect()["reason"]
    return "".join(sorted(frame.filter(reasons.is_null())["sample_id"]))


@pytest.mark.parametrize(
    ("params", "stay"),
    [
        ({"order": "easiest"}, "af"),
        ({"order": "hardest"}, "ce"),
        ({"order": "middle"}, "bd"),
        ({"order": "strata"}, "ef"),
        ({"order": "strata", "cut_off": "20%"}, "bf"),
        ({"order": "hardest", "cut_off": "20%"}, "be"),
        ({"order": "middle", "cut_off": 0.34}, "df"),
        ({"order": "easiest", "hard": "low"}, "ce"),
    ],
)
def test_keeps_the_part_of_the_ranking_that_the_order_names(params, stay):
    # From easy to hard: a f d b e c.
    assert kept(scored([0.1, 0.4, 0.9, 0.3, 0.5, 0.2]), keep_rows=2, **params) == stay


def test_says_value_rank_and_which_ranks_stay():
    frame = scored([0.83, 0.1, 0.2, 1.2], labels=[3, 3, 3, 3])
    reasons = by_score({"samples": frame}, ByScoreParams(score="el2n", order="easiest", keep_rows=2, cut_off=0.25)).collect()["reason"]
    assert reasons.to_list() == [
        "el2n 0.83: rank 3 of 4 in class 3, easiest first; ranks 1 to 2 stay",
        None,
        None,
        "el2n 1.2: rank 4 of 4 in class 3, easiest first; the hardest 1 are cut off",
    ]


def test_a_low_margin_is_hard_by_its_name():
    assert kept(scored([0.9, 0.1, 0.5], name="aum"), score="aum", order="hardest", keep_rows=1) == "b"


def test_ties_rank_by_sample_id_whatever_the_order_of_rows():
    frame = scored([1.0, 1.0, 1.0, 1.0])
    assert kept(frame, order="easiest", keep_rows=2) == kept(frame.reverse(), order="easiest", keep_rows=2) == "ab"


def test_each_class_has_its_own_ranking():
    frame = scored([0.1, 0.2, 0.8, 0.9], labels=[0, 0, 1, 1])
    assert kept(frame, order="easiest", images_per_class=1) == "ac"
    assert kept(frame, order="easiest", keep_rows=2, balance="none") == "ab"


def test_infinity_is_the_hardest_and_a_missing_score_leaves():
    frame = scored([math.inf, 2.0, NAN, None, 0.0], name="forgetting")
    assert kept(frame, score="forgetting", order="hardest", keep_rows=1) == "a"
    lines = by_score({"samples": frame}, ByScoreParams(score="forgetting", order="easiest", keep_rows=2)).collect()
    missing = ("no forgetting to rank by: null or NaN", "rejected")
    assert lines.rows()[1:] == [(None, None), missing, missing, (None, None)]
    assert lines["kind"][0] == "dropped"


def test_rows_without_a_score_give_their_place_to_other_classes():
    frame = scored([NAN, NAN, 0.1, 0.2, 0.3, 0.4], labels=[0, 0, 1, 1, 1, 1])
    assert kept(frame, order="easiest", keep_rows=3) == "cde"


@pytest.mark.parametrize("scores", [pl.Series([NAN, None], dtype=pl.Float32), pl.Series(["0.1", "0.2"])])
def test_refuses_a_score_that_ranks_nothing(scores):
    frame = pl.DataFrame({"sample_id": ["a", "b"], "label": [0, 0], "el2n": scores})
    with pytest.raises(InputError, match="score 'el2n'"):
        by_score({"samples": frame}, ByScoreParams(score="el2n", order="easiest", keep_rows=1))


def test_asks_which_end_is_hard_where_the_name_does_not_say():
    with pytest.raises(ValidationError, match="give hard: high or hard: low"):
        ByScoreParams(score="area", order="easiest", keep_rows=1)


def test_requires_the_score_and_the_label():
    params = ByScoreParams(score="aum", order="easiest", keep_rows=1)
    assert by_score.inputs["samples"].columns(params) == ["aum", "label"]


@given(LABELS_AND_SCORES, st.integers(1, 26), st.sampled_from(["easiest", "hardest", "middle"]))
def test_what_stays_is_one_run_of_the_ranking_of_each_class(rows, wanted, order):
    frame = scored([float(score) for _, score in rows], [label for label, _ in rows])
    stay = kept(frame, order=order, keep_rows=wanted)
    assert len(stay) == min(wanted, len(rows))
    for label in set(frame["label"]):
        ranking = frame.filter(pl.col("label") == label).sort("el2n", "sample_id")["sample_id"].to_list()
        flags = [sample_id in stay for sample_id in ranking]
        run = flags.count(True)
        first = {"easiest": 0, "hardest": len(flags) - run, "middle": (len(flags) - run) // 2}[order]
        assert flags == [first <= place < first + run for place in range(len(flags))]
