"""Plan: what is reused and why, by fingerprints that hold all that an output depends on, and nothing else."""

from flows.build import build_recipe
from flows.plan import make_plan

BASE = """name: digits
seed: 1
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
  core: {op: prune.random, from: split.train, keep: 10%}
  scores: {op: score.dynamics, from: split.train, epochs: 3}
"""


def prints(recipe, store, text: str, *overrides: str) -> dict[str, str]:
    return {stage.name: stage.prints.table for stage in make_plan(recipe(text), store, overrides).stages}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


def test_only_the_changed_stage_and_those_after_it_run(recipe, store):
    before = prints(recipe, store, BASE)
    assert changed(before, prints(recipe, store, BASE, "core.keep=20%")) == {"core"}
    assert changed(before, prints(recipe, store, BASE, "split.test=20%")) == {"split", "core", "scores"}


def test_equal_operators_with_other_parameters_share_nothing(recipe, store):
    text = BASE + "  other: {op: prune.random, from: split.train, keep: 11%}\n"
    found = prints(recipe, store, text)
    assert found["core"] != found["other"]


def test_names_of_stages_and_percent_signs_do_not_count(recipe, store):
    renamed = BASE.replace("split", "parts").replace("core:", "kept:").replace("table.parts", "table.split").replace("10%", "0.1")
    assert set(prints(recipe, store, BASE).values()) == set(prints(recipe, store, renamed).values())


def test_a_seed_counts_where_it_is_drawn_from(recipe, store):
    assert changed(prints(recipe, store, BASE), prints(recipe, store, BASE, "seed=2")) == {"split", "core", "scores"}


def test_a_default_written_out_is_the_same(recipe, store):
    assert prints(recipe, store, BASE) == prints(recipe, store, BASE, "split.group=null")


def test_a_new_column_upstream_trains_nothing_again(recipe, store):
    plain = make_plan(
        recipe(
            BASE.replace(
                "scores: {op: score.dynamics, from: split.train",
                "hash: {op: score.perceptual_hash, from: split}\n  scores: {op: score.dynamics, from: split.train",
            )
        ),
        store,
    )
    with_column = make_plan(
        recipe(
            BASE.replace(
                "scores: {op: score.dynamics, from: split.train",
                "hash: {op: score.perceptual_hash, from: split}\n  scores: {op: score.dynamics, from: hash.train",
            )
        ),
        store,
    )
    before, after = ({stage.name: stage.prints for stage in found.stages} for found in (plain, with_column))
    assert before["scores"].scores == after["scores"].scores
    assert before["scores"].table != after["scores"].table


def test_a_column_that_units_look_at_where_it_is_there_counts():
    """An `Input.also` of evaluate.distilled: the set's own `training`."""
    from schemas.fingerprints import Prints, fingerprint
    from tasks.evaluate.distilled import DistilledParams, distilled

    def print_of(**columns: str) -> str:
        inputs = {name: Prints("table", "rows", {"image": "a", "label": "b"} | (columns if name == "mine" else {}), {}) for name in ("real", "test", "mine")}
        return fingerprint(distilled, DistilledParams(), 1, inputs, [], [], {}).table

    assert len({print_of(), print_of(training="c"), print_of(training="d")}) == 3
    assert print_of(cluster_size="c") == print_of()


def test_a_reason_is_said_once_however_many_columns_it_touches(recipe, store):
    text = BASE + "  looks: {op: score.embed, from: split.train, side_px: 8, channels: 1}\n"
    build_recipe(recipe(text), store, until="looks", workers=1)
    reasons = {stage.name: stage.reason for stage in make_plan(recipe(text), store, ["split.validation=20%"]).stages}
    assert reasons["split"] == "validation: 0.1 → 0.2"
    assert reasons["looks"] == "input samples changed"


def test_a_source_counts_by_its_bytes(recipe, store, tmp_path):
    import os

    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 if name == "a" else 20).save(tmp_path / "photos" / name / "1.png")
    text = "name: photos\nstages:\n  raw: {op: ingest.image_folder, path: photos}\n"
    before = prints(recipe, store, text)
    file = tmp_path / "photos" / "a" / "1.png"
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # same size, and the same time below
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed(before, prints(recipe, store, text)) == {"raw"}


def test_until_plans_what_the_stage_needs_alone(recipe, store):
    assert [stage.name for stage in make_plan(recipe(BASE), store, until="split").stages] == ["raw", "split"]


def test_a_trial_samples_after_the_source(recipe, store):
    whole, trial = make_plan(recipe(BASE), store), make_plan(recipe(BASE), store, rows=50)
    names = [stage.name for stage in trial.stages]
    assert "raw--trial" in names and str(trial.graph.stages["split"].inputs["samples"]) == "raw--trial"
    assert whole.stages[0].prints.table == trial.stages[0].prints.table
