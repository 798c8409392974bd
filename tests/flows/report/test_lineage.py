"""Who feeds whom, with hidden stages folded into their owners."""

import copy

from flows.report.lineage import Source, before_and_after, feeds, graph, published, seconds_by_owner, visible
from flows.report.survey import survey


def by_name(manifest):
    return {stage["name"]: stage for stage in manifest["stages"]}


def found_feeds(manifest, name):
    return {(source.stage, source.split) for source in feeds(by_name(manifest)[name], by_name(manifest))}


def test_a_proof_reads_what_its_students_read_and_a_twin_counts_as_its_stage(build):
    assert found_feeds(build.manifest, "proof") == {("split", "test"), ("split", "train"), ("split", "validation"), ("reinforced", None)}


def test_a_stage_reads_through_the_hidden_one_that_prepares_it(build):
    manifest = copy.deepcopy(build.manifest)
    clean = by_name(manifest)["clean"]
    manifest["stages"].append(copy.deepcopy(clean) | {"name": "clean--prepared", "hidden": True})
    clean["inputs"] = {"samples": {"stage": "clean--prepared", "split": None}}
    assert found_feeds(manifest, "clean") == {("split", "train")}


def test_hidden_stages_cost_their_owner(build):
    seconds = seconds_by_owner(build.manifest)
    assert set(seconds) == {stage["name"] for stage in visible(build.manifest)}
    assert abs(seconds["proof"] - (1.5 + 11.7 + 12.0 + 12.2)) < 1e-9
    assert abs(sum(seconds.values()) - sum(stage["seconds"] for stage in build.manifest["stages"])) < 1e-9


def test_published_splits_are_those_of_the_recipe(build):
    assert published(build.manifest) == {"train": Source("reinforced"), "validation": Source("split", "validation"), "test": Source("split", "test")}


def test_a_recipe_that_can_t_be_read_publishes_its_last_stage_of_samples(build):
    for text in ("", "publish: [", "publish: {splits: {train: nobody}}", "- 1"):
        build.manifest["recipe"]["text"] = text
        assert published(build.manifest) == {"train": Source("reinforced")}


def test_before_is_the_raw_arm_of_the_proof(build):
    by_name(build.manifest)["proof--raw-hard"]["inputs"]["samples"] = {"stage": "clean", "split": None}
    assert before_and_after(build.manifest) == (Source("clean"), Source("reinforced"))


def test_without_a_proof_before_is_the_first_split_upstream_else_the_source(build):
    build.manifest["proof"] = None
    assert before_and_after(build.manifest) == (Source("split", "train"), Source("reinforced"))
    by_name(build.manifest)["clean"]["inputs"]["samples"]["split"] = None
    assert before_and_after(build.manifest) == (Source("raw"), Source("reinforced"))


def test_the_graph_has_an_arrow_a_pair_with_the_rows_of_its_splits(build):
    surveys = {stage["name"]: survey(build.tables(stage["name"]), 1) for stage in visible(build.manifest) if stage["gives"] == "samples"}
    nodes, edges = graph(build.manifest, surveys)
    assert [node.title for node in nodes][-1] == "digits@3"
    assert {node.name: node.hidden for node in nodes if node.hidden} == {"core": 1, "mixed": 1, "reinforced": 1, "proof": 3}
    (train,) = [edge for edge in edges if (edge.start, edge.stop) == ("split", "clean")]
    assert (train.label, train.rows) == ("train", build.manifest["stages"][2]["counts"]["in"])
    (whole,) = [edge for edge in edges if (edge.start, edge.stop) == ("core", "mixed")]
    assert (whole.label, whole.rows) == ("", 108)
    assert [edge.rows for edge in edges if edge.start == "teacher"] == [None, None]
