"""The main line of a judged set: the first net, the set's own labels, the protocol's augmentation."""

from typing import Any

from flows.judged import headline_set, main_lines


def line(kind: str, arm: str, value: float, *, labels: str = "soft", net: str = "convnet3", main: bool = True, **more: Any) -> dict[str, Any]:
    name = "accuracy" if kind == "arm" else "gain"
    return {"kind": kind, "set": "mine", "arm": arm, "net": net, "labels": labels, "main": main, name: value, "low": value - 0.1, "high": value + 0.1, **more}


# A set with soft labels, beside real samples that have hard ones alone.
LINES = [
    line("arm", "candidate", 0.8),
    line("arm", "candidate", 0.7, labels="hard"),
    line("arm", "candidate", 0.6, main=False),
    line("arm", "random", 0.5, labels="hard", main=False),
    line("arm", "random", 0.4, labels="hard"),
    line("arm", "candidate", 0.3, net="mlp"),
    line("arm", "random", 0.2, net="mlp", labels="hard"),
    line("difference", "candidate", 0.1, against="random.hard", main=False),
    line("difference", "candidate", 0.3, against="random.hard", labels="hard"),
    line("difference", "candidate", 0.4, against="random.hard"),
    line("difference", "candidate", 0.05, against="random.hard", net="mlp"),
]


def judged(stage: str = "judged", **sets: str) -> dict[str, Any]:
    return {"stage": stage, "sets": sets, "lines": [one | {"set": name} for name in sets for one in LINES]}


def test_further_nets_other_labels_and_other_augmentations_are_not_it():
    (found,) = main_lines([judged(mine="distilled")])
    assert (found.title, found.source) == ("mine", "distilled")
    assert found.candidate["accuracy"] == 0.8
    assert {name: rival["accuracy"] for name, rival in found.rivals.items()} == {"random": 0.4}
    assert {name: gain["gain"] for name, gain in found.gains.items()} == {"random": 0.4}


def test_the_published_set_speaks_before_the_first():
    manifest = {"judged": [judged(mine="distilled", other="pruned")]}
    assert [headline_set(manifest, trains).title for trains in ("pruned", "distilled", "elsewhere", None)] == ["other", "mine", "mine", "mine"]
    assert headline_set({"judged": []}, "pruned") is headline_set({}, None) is None


def test_a_name_that_two_stages_judged_is_told_with_its_stage():
    found = main_lines([judged("a", mine="distilled", other="pruned"), judged("b", mine="distilled")])
    assert [one.title for one in found] == ["mine (a)", "other", "mine (b)"]
