"""What `promote:` says of a snapshot whose small sets were judged."""

import pytest

from flows.build import build_recipe
from flows.proof import verdict
from flows.resolve import resolve
from schemas.recipe import Promote
from stillroom.errors import RecipeErrors
from stillroom.snapshots import manifest_of
from tests.flows.report.conftest import judged

JUDGED = """name: digits
stages:
  raw: {op: ingest.digits}
  some: {op: table.sample, from: raw, rows: 120}
  split: {op: table.split, from: some, test: 50%}
  few: {op: prune.random, from: split.train, keep: 50%}
  judged:
    op: evaluate.distilled
    from: {mine: few, real: split.train, test: split.test}
    nets: ["mlp:8"]
    seeds: 2
    epochs: 1
    real_epochs: 0
    robustness: false
publish:
  splits: {train: few, test: split.test}
  promote: {min_gain_over_random: -100%}
"""
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


def test_a_snapshot_of_which_nothing_was_judged_is_not_promoted():
    assert told(min_gain_over_random=0) == (False, "the snapshot says of no set what it gains over random; build it again")


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


def test_a_build_promotes_what_meets_the_bound_and_another_judgement_of_the_same_rows_is_another_snapshot(recipe, store):
    path = str(recipe(JUDGED))
    first = build_recipe(path, store, workers=1)
    assert (first.snapshot, first.promoted) == ("digits@1", True)
    assert first.notes[0].startswith("digits@1 is promoted: mine ") and first.notes[0].endswith(" over random")
    second = build_recipe(path, store, ["judged.seeds=3"], workers=1)
    assert (second.snapshot, second.promoted) == ("digits@2", True)
    before, after = (manifest_of(f"digits@{number}", str(store)) for number in (1, 2))
    assert before["digest"] == after["digest"]
    assert [manifest["judged"][0]["lines"][0]["seeds"] for manifest in (before, after)] == [2, 3]
    assert build_recipe(path, store, workers=1).snapshot == "digits@1"
