"""What the terminal says of judged small sets: each beside random and herding, no more than the intervals show."""

from flows.cli.judged_table import print_judged
from stillroom.stores import Store
from tests.flows.report.conftest import judged


def test_a_set_has_a_line_a_rival_and_a_sentence(capsys):
    print_judged(judged(herding=0.005))
    printed = capsys.readouterr().out
    random, herding = (line.split() for line in printed.splitlines() if "random  " in line or "herding" in line)
    assert random == ["tesla", "10", "mlp:128", "70.0", "[68.0,", "72.0]", "random", "+20.0", "[+19.0,", "+21.0]", "better"]
    assert herding == ["herding", "+0.5", "[−0.5,", "+1.5]", "no", "gain", "shown"]
    assert printed.rstrip().endswith("tesla beats a random choice by more than the interval: +20.0 points [+19.0, +21.0]")


def test_sets_of_one_name_are_told_apart_by_their_stages(capsys):
    print_judged([*judged(), judged(random=-0.1)[0] | {"stage": "again"}])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said if "random choice" in line] == [
        "tesla (judged) beats a random choice by more than the interval",
        "tesla (again) is worse than a random choice",
    ]


def test_show_says_it_of_a_snapshot(stillroom, published):
    manifest = Store(published).read_json("snapshots/digits/1.json")
    Store(published).put_json("snapshots/digits/1.json", manifest | {"judged": judged()})
    assert "tesla beats a random choice" in stillroom("show", "digits@1", "--store", published).stdout
