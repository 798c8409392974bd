"""What `promote:` says of a snapshot whose small sets were judged."""

import pytest

from flows.proof import verdict
from flows.resolve import resolve
from schemas.recipe import Promote
from stillroom.errors import RecipeErrors
from tests.flows.report.conftest import judged

# Every set of `judged` has an interval of a point on either side of its gain over random.
ARMS = [{"arm": f"{role}.hard", "accuracy": 0.9, "low": 0.89, "high": 0.91} for role in ("candidate", "control")]
BEATEN = {"arms": ARMS, "differences": [{"arm": "candidate.hard", "against": "control.hard", "gain": -0.03, "low": -0.04, "high": -0.02}]}


def told(*gains, proof=None, **promote):
    stages = [judged(random=gain)[0] | {"stage": f"judged{place}"} for place, gain in enumerate(gains)]
    return verdict(Promote(**promote), {"proof": proof, "judged": stages}, None)


@pytest.mark.parametrize(("least", "met"), [(0, True), ("4%", True), ("4.5%", False), ("-10%", True)])
def test_the_lower_end_of_the_gain_over_random_decides(least, met):
    ok, why = told(0.0501, min_gain_over_random=least)
    assert (ok, why.partition(" over random")[0]) == (met, "tesla +5.0% [+4.0%, +6.0%]")


def test_an_interval_below_the_bound_says_what_is_missing():
    assert told(0.005, min_gain_over_random=0) == (
        False,
        "tesla +0.5% [-0.5%, +1.5%] over random, and +0.0% is asked of the lower end of every set; not met by tesla",
    )


def test_of_several_stages_all_must_pass():
    assert told(0.2, 0.1, min_gain_over_random=0)[0]
    ok, why = told(0.2, 0.005, min_gain_over_random=0)
    assert not ok and why.endswith("not met by tesla (judged1)")


def test_random_is_asked_beside_what_is_asked_of_a_proof():
    assert not told(0.2, proof=BEATEN, min_gain_over_random=0, min_gain_over_control=0)[0]
    assert told(0.2, proof=BEATEN, min_gain_over_random=0)[0]
    assert told(0.2, min_gain_over_random=0, min_gain_over_control=0) == (False, "the recipe has `promote:` and no proof; add an evaluate.student stage")


def test_a_recipe_that_judges_no_set_is_refused_with_a_way_out(recipe):
    text = """name: digits
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
publish:
  splits: {train: split.train}
  promote: {min_gain_over_random: 0}
"""
    with pytest.raises(RecipeErrors) as caught:
        resolve(recipe(text))
    (line,) = str(caught.value).split("\n")
    assert line.startswith(
        "recipe: publish.promote.min_gain_over_random (line 7): no stage compares a set with a random choice; add one: {op: evaluate.distilled"
    )
