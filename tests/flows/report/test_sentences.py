"""The one sentence: right numbers, and honest where the snapshot doesn't beat its control."""

import pytest

from flows.judged import headline_set
from flows.report.sentences import count, duration, headline, interval, percent, points, set_conclusion, size, verdict, worst_classes
from tests.flows.report.conftest import judged


def arm(name, rows, accuracy, half=0.004, per_class=()):
    return {"arm": name, "rows": rows, "accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "seeds": 5, "per_class": list(per_class)}


def proof(gain=0.035, low=0.029, high=0.041, labels="stored"):
    return {
        "arms": [arm("raw.hard", 1437, 0.984), arm(f"candidate.{labels}", 430, 0.972), arm(f"control.{labels}", 430, 0.937)],
        "differences": [{"arm": f"candidate.{labels}", "against": f"control.{labels}", "gain": gain, "low": low, "high": high}],
    }


def sentence(proof, *, rows=430, synthetic=0, trial=False, raw_rows=1437, noun="images"):
    return headline({"trial": trial, "proof": proof}, rows=rows, synthetic=synthetic, raw_rows=raw_rows, noun=noun).replace("\u00a0", " ")


def test_a_gain_beyond_the_interval_is_told_with_all_its_numbers():
    assert sentence(proof(), noun="digits") == (
        "Train on 430 of 1,437 digits: 97.2 % [96.8, 97.6] test accuracy, against 98.4 % for all 1,437 and 93.7 % for a random choice "
        "of equal size: a gain of 3.5 points [2.9, 4.1] over the random choice."
    )


def test_a_difference_that_may_be_zero_is_no_gain():
    assert sentence(proof(0.002, -0.003, 0.007)).endswith(
        "the difference from the random choice, +0.2 points [−0.3, +0.7], is within the uncertainty, so no gain is shown."
    )


def test_a_loss_is_told_as_a_loss():
    assert sentence(proof(-0.012, -0.018, -0.006)).endswith("worse than the random choice (−1.2 points [−1.8, −0.6]).")


@pytest.mark.parametrize(("low", "high", "outcome"), [(0.001, 0.01, "better"), (0.0, 0.01, "unclear"), (-0.01, 0.0, "unclear"), (-0.01, -0.001, "worse")])
def test_an_interval_that_touches_zero_shows_nothing(low, high, outcome):
    assert verdict(proof((low + high) / 2, low, high)).outcome == outcome


def test_synthetic_images_are_counted_apart():
    assert sentence(proof(), synthetic=330).startswith("Train on 100 of 1,437 images and 330 synthetic ones: ")
    assert sentence(proof(), synthetic=430).startswith("Train on 430 synthetic images: ")


def test_stored_labels_are_judged_against_the_control_with_stored_labels_though_plain_ones_score_higher():
    both = proof(0.001, -0.002, 0.004)
    both["arms"] += [arm("candidate.hard", 430, 0.99), arm("control.hard", 430, 0.90)]
    both["differences"].insert(0, {"arm": "candidate.hard", "against": "control.hard", "gain": 0.09, "low": 0.08, "high": 0.1})
    assert verdict(both).outcome == "unclear"
    assert "97.2 % [96.8, 97.6]" in sentence(both)


def test_plain_labels_are_judged_where_there_are_no_others():
    assert verdict(proof(labels="hard")).outcome == "better"


def test_without_a_control_it_says_that_nothing_is_known_of_the_choice():
    alone = {"arms": proof()["arms"][:2], "differences": []}
    assert sentence(alone).endswith("against 98.4 % for all 1,437; no control was measured, so nothing says that the choice matters.")


def test_without_a_proof_it_claims_nothing():
    assert sentence(None, rows=556, synthetic=451) == (
        "To train on: 105 of 1,437 images and 451 synthetic ones; this recipe has no proof, so what they are worth was not measured."
    )
    assert verdict(None).outcome == "unmeasured"


def of_set(trains="distilled", **gains):
    manifest = {"proof": None, "judged": judged(**gains)}
    main = headline_set(manifest, trains)
    return headline(manifest, rows=10, synthetic=10, raw_rows=1437, judged=main, trains=trains).replace("\u00a0", " ")


def test_a_judged_set_speaks_for_a_snapshot_without_a_proof():
    assert of_set() == (
        "Train on 10 synthetic images: 70.0 % [68.0, 72.0] test accuracy, against 50.0 % for a random choice of equal size and 60.0 % for herding: "
        "a gain of 20.0 points [19.0, 21.0] over the random choice; a gain of 10.0 points [9.0, 11.0] over herding."
    )


@pytest.mark.parametrize(
    ("gain", "clause", "conclusion"),
    [
        (
            0.005,
            "the difference from the random choice, +0.5 points [−0.5, +1.5], is within the uncertainty, so no gain is shown;",
            "does not beat a random choice",
        ),
        (-0.02, "worse than the random choice (−2.0 points [−3.0, −1.0]);", "is worse than a random choice"),
    ],
)
def test_a_judged_set_that_beats_nothing_is_said_to(gain, clause, conclusion):
    assert clause in of_set(random=gain)
    assert set_conclusion(headline_set({"judged": judged(random=gain)}, None)).startswith(f"tesla {conclusion}")


def test_a_judged_set_that_is_not_what_is_published_is_named():
    assert of_set(trains="reinforced").startswith("To train on: 10 synthetic images; what was measured is the set tesla of 10 images: 70.0 %")


def test_a_proof_comes_before_a_judged_set():
    manifest = {"proof": proof(), "judged": judged()}
    assert headline(manifest, rows=430, judged=headline_set(manifest, "distilled"), trains="distilled").startswith("Train on 430 of 1,437 images")


def test_a_trial_is_called_one():
    assert sentence(proof(), trial=True).startswith("In a trial on a part of the data: Train on 430")


def test_worst_classes_are_those_of_the_judged_arm():
    judged = proof()
    judged["arms"][1]["per_class"] = [{"label_name": name, "accuracy": accuracy} for name, accuracy in (("a", 0.9), ("b", 0.7), ("c", 0.8), ("d", 0.95))]
    assert [one["label_name"] for one in worst_classes(judged)] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (percent(0.97214), "97.2 %"),
        (percent(-0.0001), "0.0 %"),
        (interval(0.9675, 1.0), "[96.8, 100.0]"),
        (points(-0.0123), "−1.2"),
        (count(1437), "1,437"),
        (duration(0.0), "< 0.1 s"),
        (duration(9.94), "9.9 s"),
        (duration(9.96), "10 s"),
        (duration(59.7), "1 min 0 s"),
        (duration(7_830), "2 h 10 min"),
        (size(999), "999 B"),
        (size(12_340), "12.3 kB"),
        (size(999_600), "1.0 MB"),
        (size(4_100_000_000), "4.1 GB"),
    ],
)
def test_numbers_read_as_people_write_them(said, text):
    assert said.replace("\u00a0", " ") == text
