"""Resolve: every fault at once, each in one line with the nearest valid name, before anything runs."""

import pytest

from flows.resolve import resolve
from stillroom.errors import RecipeErrors

HEAD = "name: digits\nseed: 1\nstages:\n"


def faults(recipe, text: str) -> list[str]:
    with pytest.raises(RecipeErrors) as caught:
        resolve(recipe(text))
    return str(caught.value).split("\n")


def test_three_typos_are_three_lines(recipe):
    found = faults(recipe, HEAD + """
  raw: {op: ingest.digitz}
  split: {op: table.split, from: raww, test: 20%}
  whole: {op: ingest.digits}
  part: {op: table.sample, from: whole, row: 9, rows: 5}
""")  # fmt: skip
    assert len(found) == 3
    assert any("unknown operator 'ingest.digitz'; did you mean 'ingest.digits'?" in line and line.startswith("stage 'raw': op") for line in found)
    assert any("unknown stage 'raww'; did you mean 'raw'?" in line for line in found)
    assert any("row (line 8): unknown parameter; did you mean 'rows'?" in line for line in found)


def test_a_fault_of_the_text_does_not_hide_one_of_a_stage(recipe):
    found = faults(recipe, "nam: x\n" + HEAD + "  raw: {op: ingest.digitz}\n")
    assert len(found) == 2


def test_a_cycle_names_its_stages(recipe):
    (found,) = faults(recipe, HEAD + "  a: {op: table.sample, from: b, rows: 1}\n  b: {op: table.sample, from: a, rows: 1}\n")
    assert "in a circle: a → b → a" in found or "in a circle: b → a → b" in found


def test_a_missing_column_names_the_operator_that_needs_it(recipe):
    (found,) = faults(
        recipe,
        HEAD
        + "  raw: {op: ingest.digits}\n  split: {op: table.split, from: raw}\n  core: {op: prune.by_score, from: split.train, score: el2n, order: easiest, keep: 10%}\n",
    )
    assert "'split' has no column 'el2n', which operator 'prune.by_score' needs" in found


def test_nobody_may_leave_after_views_that_mix_others_in(recipe):
    text = (
        HEAD
        + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, test: 20%}
  seen: {op: reinforce.views, from: split.train, policy: [crop, cutmix]}
  half: {op: table.sample, from: seen, rows: 50}
"""
    )
    (found,) = faults(recipe, text)
    problem = "'seen' has views that mix in other samples, and 'table.sample' may drop some of those; put 'half' before the stage that draws the views"
    assert found == f"stage 'half': from (line 8): {problem}"
    resolve(recipe(text.replace("crop, cutmix", "crop, flip")))


def test_a_model_is_no_table_of_samples(recipe):
    found = faults(recipe, HEAD + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
  teacher: {op: train.teacher, from: split.train, steps: 10}
  part: {op: table.sample, from: teacher, rows: 5}
""")  # fmt: skip
    assert found == ["stage 'part': from (line 8): 'teacher' gives a model, and input 'samples' wants samples"]


@pytest.mark.parametrize(
    ("edge", "says"),
    [("split", "may hold test rows, which must not reach 'train.teacher'; write `split.train`"), ("raw", "was never split, so its rows may be test rows")],
)
def test_a_test_row_cannot_reach_training(recipe, edge, says):
    (found,) = faults(
        recipe, HEAD + f"  raw: {{op: ingest.digits}}\n  split: {{op: table.split, from: raw}}\n  teacher: {{op: train.teacher, from: {edge}, steps: 10}}\n"
    )
    assert says in found


def test_a_test_row_cannot_reach_training_through_a_mix(recipe):
    (found,) = faults(recipe, HEAD + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
  mixed: {op: table.mix, from: [split.train, split.test]}
  teacher: {op: train.teacher, from: mixed, steps: 10}
""")  # fmt: skip
    assert "'mixed' may hold test rows" in found


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("embeddin: cosine", "publish.index.embeddin (line 9): no such column; did you mean 'embedding'?"),
        ("label: l2", "publish.index.label (line 9): isn't a column of vectors; known: embedding"),
        ("embedding: cosin", "publish.index.embedding (line 9): should be 'cosine', 'l2' or 'dot'"),
    ],
)
def test_an_index_wants_a_published_column_of_vectors(recipe, index, says):
    looks = "  raw: {op: ingest.digits}\n  looks: {op: score.embed, from: raw, side_px: 8, channels: 1}\n  split: {op: table.split, from: looks}\n"
    (found,) = faults(recipe, HEAD + looks + f"publish:\n  splits: {{train: split.train}}\n  index: {{{index}}}\n")
    assert found.startswith(f"recipe: {says}")


def test_the_training_split_is_not_published_with_test_rows(recipe):
    (found,) = faults(recipe, HEAD + "  raw: {op: ingest.digits}\n  split: {op: table.split, from: raw}\npublish:\n  splits: {train: split}\n")
    assert found.startswith("recipe: publish.splits.train") and "may hold test rows" in found


def test_a_missing_file_is_a_fault_of_its_parameter(recipe):
    (found,) = faults(recipe, HEAD + "  raw: {op: ingest.image_folder, path: nowhere}\n")
    assert found.startswith("stage 'raw': path (line 4): '") and "is not there" in found


@pytest.mark.parametrize("path", ["a" * 300, "~nobody-of-that-name/x", '"a\\x00b"'])
def test_what_cannot_be_a_path_is_a_fault_of_its_parameter(recipe, path):
    (found,) = faults(recipe, HEAD + f"  raw: {{op: ingest.image_folder, path: {path}}}\n")
    assert found.startswith("stage 'raw': path (line 4): ") and "can't be a path: " in found


@pytest.mark.parametrize("ablations", ["[[split]]", "[{split: 1}]", "[7]"])
def test_an_ablation_that_is_no_name_is_an_unknown_stage(recipe, ablations):
    text = "  raw: {op: ingest.digits}\n  split: {op: table.split, from: raw}\n  core: {op: prune.random, from: split.train, keep: 10%}\n"
    text += (
        f"  proof: {{op: evaluate.student, from: {{candidate: core, raw: split.train, tune: split.validation, test: split.test}}, ablations: {ablations}}}\n"
    )
    assert all("ablations (line 7): unknown stage" in found for found in faults(recipe, HEAD + text))


def test_a_stage_name_that_only_looks_like_a_number_is_an_unknown_input(recipe):
    found = faults(recipe, HEAD + "  raw: {op: ingest.digits}\n  part: {op: table.sample, from: {²: raw}, rows: 5}\n")
    assert any("from.² (line 5): unknown input" in line for line in found)


@pytest.mark.parametrize(("classes", "says"), [("classes: [b, a]", "'two' has other class names than the inputs before"), ("", None)])
def test_inputs_of_a_mix_must_agree_on_their_classes(recipe, tmp_path, classes, says):
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(name.encode())
    text = HEAD + f"  one: {{op: ingest.image_folder, path: photos}}\n  two: {{op: ingest.image_folder, path: photos, {classes}}}\n"
    path = recipe((text + "  mixed: {op: table.mix, from: [one, two]}\n").replace(", }", "}"))
    if says is None:
        assert "mixed" in resolve(path).stages
        return
    with pytest.raises(RecipeErrors, match=f"stage 'mixed': from.*: {says}"):
        resolve(path)


def test_a_control_must_be_on_the_way_to_the_candidate(recipe):
    text = (
        HEAD
        + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
  core: {op: prune.random, from: split.train, keep: 10%}
  other: {op: prune.random, from: split.train, keep: 20%}
  proof:
    op: evaluate.student
    from: {candidate: core, raw: split.train, tune: split.validation, test: split.test}
    control: {in_place_of: other}
"""
    )
    (found,) = faults(recipe, text)
    assert "'other' is not on the way to the candidate 'core'" in found


def test_twins_repeat_every_stage_between_the_choice_and_the_proof(recipe):
    graph = resolve(recipe(HEAD + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
  core: {op: prune.random, from: split.train, keep: 10%}
  whole: {op: filter.decodable, from: core}
  proof:
    op: evaluate.student
    from: {candidate: whole, raw: split.train, tune: split.validation, test: split.test}
    control: {in_place_of: core, pool: split.train}
    ablations: [core]
"""))  # fmt: skip
    stages = graph.stages
    assert {name for name, stage in stages.items() if stage.hidden} >= {
        "core--random",
        "whole--random",
        "whole--without-core",
        "proof--raw-hard",
        "proof--candidate-hard",
        "proof--control-hard",
    }
    assert str(stages["core--random"].inputs["like"]) == "core"
    assert str(stages["whole--random"].inputs["samples"]) == "core--random"
    assert str(stages["whole--without-core"].inputs["samples"]) == "split.train"
    assert list(stages["proof"].inputs)[0] == "test"


def test_a_generator_left_out_leaves_what_it_was_mixed_with(recipe):
    graph = resolve(
        recipe(
            HEAD
            + """
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw}
  core: {op: prune.random, from: split.train, keep: 10%}
  painter: {op: train.class_diffusion, from: split.train, steps: 1}
  painted: {op: generate.class_diffusion, from: painter, per_class: 1}
  sound: {op: filter.decodable, from: painted}
  mixed: {op: table.mix, from: {real: core, synthetic: sound}}
  proof:
    op: evaluate.student
    from: {candidate: mixed, raw: split.train, tune: split.validation, test: split.test}
    ablations: [painted]
"""
        )
    )
    assert {name: str(edge) for name, edge in graph.stages["mixed--without-painted"].inputs.items()} == {"real": "core"}
    assert "without_0.hard" in graph.stages["proof"].inputs
