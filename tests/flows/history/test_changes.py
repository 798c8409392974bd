"""Why two snapshots differ, told from two small manifests."""

from typing import Any

from flows.history.changes import Change, changes


def stage(name: str, fingerprint: str, edge: str = "", *, op: str = "table.any", hidden: bool = False, **params: Any) -> dict[str, Any]:
    before, _, split = edge.partition(".")
    edges = {"samples": {"stage": before, "split": split or None}} if edge else {}
    return {
        "name": name, "op": op, "version": 1, "gives": "samples", "hidden": hidden, "fingerprint": fingerprint, "inputs": edges, "params": params,
        "seed": 7, "rows": 4, "digest": f"rows of {fingerprint}",
    }  # fmt: skip


def manifest(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    usual = {
        "stages": list(stages),
        "seed": 7,
        "trial": False,
        "recipe": {"text": "", "overrides": []},
        "proof": None,
        "published": {"train": {"stage": "core", "split": None}},
    }
    return usual | {"environment": {"python": "3.11.7", "packages": {"torch": "2.14.0", "timm": "1.0"}}} | more


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    return [(line.stage, line.status) for line in changes(before, after).stages]


def test_a_changed_parameter_is_the_cause_and_what_comes_after_follows():
    before = manifest(stage("raw", "r"), stage("clean", "c1", "raw", views={"count": 4, "flip": 0.5}), stage("core", "k1", "clean"))
    after = manifest(stage("raw", "r"), stage("clean", "c2", "raw", views={"count": 8, "flip": 0.5}), stage("core", "k2", "clean"))
    assert told(before, after) == [("raw", "same"), ("clean", "changed"), ("core", "follows")]
    (cause,) = changes(before, after).causes
    assert cause.differences == [Change("views.count", 4, 8)]


def test_a_source_whose_files_changed_reads_other_data():
    assert told(manifest(stage("raw", "r1"), stage("core", "k1", "raw")), manifest(stage("raw", "r2"), stage("core", "k2", "raw"))) == [
        ("raw", "data"),
        ("core", "follows"),
    ]


def test_stages_of_one_recipe_alone_are_new_or_gone():
    before = manifest(stage("raw", "r"), stage("old", "o", "raw"), stage("core", "k1", "old"))
    after = manifest(stage("raw", "r"), stage("new", "n", "raw"), stage("core", "k2", "new"))
    assert told(before, after) == [("raw", "same"), ("new", "added"), ("core", "changed"), ("old", "removed")]


def test_a_stage_under_another_name_is_the_same_and_edges_to_it_too():
    before = manifest(stage("raw", "r"), stage("core", "k", "raw"))
    after = manifest(stage("photos", "r"), stage("core", "k", "photos"))
    found = changes(before, after)
    assert [(line.stage, line.status) for line in found.stages] == [("photos", "renamed"), ("core", "same")]
    assert found.causes == []


def test_an_edge_from_another_split_is_a_difference():
    before = manifest(stage("raw", "r"), stage("core", "k1", "raw.train"))
    after = manifest(stage("raw", "r"), stage("core", "k2", "raw.validation"))
    assert changes(before, after).causes[0].differences == [Change("from.samples", "raw.train", "raw.validation")]


def test_twins_that_plan_added_are_nobodys_news():
    assert told(manifest(stage("core", "k")), manifest(stage("core", "k"), stage("core--random", "x", hidden=True))) == [("core", "same")]


def test_seed_overrides_splits_packages_and_machine_are_told():
    before = manifest(stage("core", "k"))
    after = manifest(
        stage("core", "k"), seed=8, recipe={"text": "", "overrides": ["core.keep=20%"]}, published={"train": {"stage": "core", "split": "train"}},
        environment={"python": "3.12.1", "packages": {"torch": "2.14.1", "timm": "1.0", "scipy": "1.17"}},
    )  # fmt: skip
    found = changes(before, after)
    assert found.settings == [Change("seed", 7, 8), Change("--set", None, "core.keep=20%"), Change("publish.train", "core", "core.train")]
    assert found.packages == [Change("torch", "2.14.0", "2.14.1"), Change("scipy", None, "1.17")]
    assert found.machine == [Change("python", "3.11.7", "3.12.1")]


def test_arms_that_both_proofs_have_are_set_side_by_side():
    def proof(accuracy: float, *names: str) -> dict[str, Any]:
        return {"arms": [{"arm": name, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01} for name in names], "differences": []}

    found = changes(manifest(proof=proof(0.9, "raw.hard", "candidate.hard")), manifest(proof=proof(0.95, "candidate.hard", "candidate.stored")))
    assert [(arm.arm, arm.before, arm.after) for arm in found.proof] == [("candidate.hard", 0.9, 0.95)]


def test_judged_sets_stand_beside_what_they_were_before():
    def judged(accuracy: float, *sets: str) -> list[dict[str, Any]]:
        said = {"net": "mlp", "labels": "hard", "augmented": False, "main": True, "low": 0.0, "high": 1.0}
        lines = []
        for name in sets:
            lines += [{**said, "kind": "arm", "set": name, "arm": arm, "accuracy": of} for arm, of in (("candidate", accuracy), ("random", 0.5))]
            lines.append({**said, "kind": "difference", "set": name, "arm": "candidate", "against": "random.hard", "gain": accuracy - 0.5})
        return [{"stage": "judged", "sets": {name: name for name in sets}, "lines": lines}]

    found = changes(manifest(judged=judged(0.7, "tesla", "dm")), manifest(judged=judged(0.8, "pca", "tesla")))
    assert [(arm.arm, arm.before, arm.after) for arm in found.proof] == [("tesla", 0.7, 0.8), ("tesla: random", 0.5, 0.5)]
