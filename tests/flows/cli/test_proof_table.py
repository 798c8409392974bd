"""What the terminal says of a proof: no more than its intervals show."""

import pytest

from flows.cli.proof_table import conclusion, print_proof


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.01, 0.05, "the snapshot beats its control by more than the interval: +3.0 points [+1.0, +5.0]"),
        (-0.01, 0.07, "the snapshot does not beat its control beyond the interval: +3.0 points [−1.0, +7.0]"),
        (-0.05, -0.01, "the snapshot is worse than its control: +3.0 points [−5.0, −1.0]"),
    ],
)
def test_the_sentence_follows_the_interval(proof, low, high, sentence):
    proof["differences"] = [{"arm": "candidate.stored", "against": "control.stored", "gain": 0.03, "low": low, "high": high}]
    assert conclusion(proof) == sentence


def test_without_a_control_nothing_is_claimed(proof):
    proof["arms"] = [arm for arm in proof["arms"] if not arm["arm"].startswith("control")]
    assert conclusion(proof) == "no control was measured, so nothing says that the choice matters"


def test_arms_stand_in_the_order_raw_control_snapshot(proof, capsys):
    print_proof(proof)
    accuracies = [line.split()[-5] for line in capsys.readouterr().out.splitlines() if "0.003" in line]
    assert accuracies == ["97.3", "94.0", "97.1"]
