"""The commands that look: plan, ops, snapshots, show, runs."""

import json

import pytest

from stillroom.stores import Store
from storage.runs import begin_run, end_run


def table(printed: str) -> list[list[str]]:
    """The words of each line below a table's rule."""
    lines = [line for line in printed.splitlines() if line.strip()]
    rule = next(index for index, line in enumerate(lines) if "───" in line)
    return [line.split() for line in lines[rule + 1 :]]


def test_plan_says_what_runs_and_why(stillroom, mini, store):
    ended = stillroom("plan", mini, "--store", store)
    assert table(ended.stdout) == [
        ["raw", "ingest.digits", "run", "1,797", "never", "built"],
        ["split", "table.split", "run", "at", "most", "1,797", "never", "built"],
        ["core", "prune.random", "run", "at", "most", "1,797", "never", "built"],
    ]
    assert ended.stderr == "3 of 3 stages to run\n"
    assert not store.exists()


def test_plan_takes_overrides_and_a_last_stage(stillroom, mini, store):
    planned = json.loads(stillroom("plan", mini, "--store", store, "--until", "split", "--set", "split.test=30%", "--json").stdout)
    assert [(stage["name"], stage["action"]) for stage in planned] == [("raw", "run"), ("split", "run")]
    assert planned[1]["inputs"] == {"samples": "raw"}


def test_ops_lists_operators_with_a_sentence_each(stillroom):
    listed = {line[0]: line for line in table(stillroom("ops").stdout)}
    assert listed["filter.exact_duplicates"][1:3] == ["select", "samples"]
    assert len(listed["filter.exact_duplicates"]) > 6
    assert "train.student" not in listed  # hidden: the proof's own
    assert "train.student" in stillroom("ops", "--all").stdout


def test_ops_shows_an_operator_with_its_parameters(stillroom):
    shown = json.loads(stillroom("ops", "prune.random", "--json").stdout)
    parameters = {parameter["name"]: parameter for parameter in shown["parameters"]}
    assert parameters["keep"]["type"] == "float | none"
    assert parameters["balance"]["type"] == "label | proportional | none"
    assert all(parameter["description"] for parameter in shown["parameters"])
    assert "float | none" in stillroom("ops", "prune.random").stdout


def test_ops_names_the_nearest_operator(stillroom):
    ended = stillroom("ops", "prune.randm")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "did you mean 'prune.random'?" in ended.stderr


def test_snapshots_lists_what_the_store_has(stillroom, published):
    (line,) = table(stillroom("snapshots", "--store", published).stdout)
    assert (line[0], line[3], line[-1]) == ("digits@1", "1,367", "abababababab")
    assert json.loads(stillroom("snapshots", "--store", published, "--json").stdout)[0]["promoted"] is False


def test_an_empty_store_says_how_to_fill_it(stillroom, store):
    ended = stillroom("snapshots", "--store", store)
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert "`stillroom build RECIPE` makes one" in ended.stderr


def test_show_prints_a_snapshot_without_its_hidden_stages(stillroom, published):
    shown = stillroom("show", "digits@1", "--store", published).stdout
    assert shown.startswith("digits@1: 648 train, 359 validation, 360 test\n")
    assert "1 of 1 gates passed" in shown
    assert "core--random" not in shown
    assert shown.endswith(f"report  {published}/snapshots/digits/1.html\n")


def test_show_json_is_the_manifest(stillroom, published):
    shown = json.loads(stillroom("show", "digits@1", "--store", published, "--json").stdout)
    assert shown == Store(published).read_json("snapshots/digits/1.json")


@pytest.mark.parametrize("name", ["digits", "digits@7", "pets"])
def test_a_snapshot_that_is_not_there_is_one_clear_line(stillroom, published, name):
    ended = stillroom("show", name, "--store", published)
    assert (ended.exit_code, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
    assert ended.stderr.startswith(f"error: {name}: ")


def test_runs_end_with_the_command_to_go_on(stillroom, store):
    failed = begin_run(Store(store), "photos", {}, "stillroom build photos.yaml")
    end_run(Store(store), failed, "Failed", stage="core", message="stage 'core': no row is left\nsecond line")
    fine = begin_run(Store(store), "digits", {}, "stillroom build digits.yaml")
    end_run(Store(store), fine, "Completed")
    ended = stillroom("runs", "--store", store)
    assert "no row is left" in ended.stdout
    assert "second line" not in ended.stdout
    assert ended.stderr == "to go on with photos: stillroom build photos.yaml\n"
    assert {run["state"] for run in json.loads(stillroom("runs", "--store", store, "--json").stdout)} == {"Failed", "Completed"}


def test_show_says_what_was_forgotten_and_where_a_snapshot_came_from(stillroom, published):
    plain = stillroom("show", "digits@1", "--store", published).stdout
    assert "forgotten" not in plain
    assert "imported" not in plain
    store = Store(published)
    manifest = store.read_json("snapshots/digits/1.json")
    manifest["stages"][0]["counts"]["forgotten"] = 2
    manifest["imported"] = {"from": "digits@7", "at": "2026-11-26T04:30:00+00:00"}
    store.put_json("snapshots/digits/1.json", manifest)
    shown = stillroom("show", "digits@1", "--store", published).stdout
    assert "imported from digits@7" in shown
    heads = next(line for line in shown.splitlines() if "forgotten" in line).split()
    (raw,) = [line.split() for line in shown.splitlines() if line.split()[:1] == ["raw"]]
    assert raw[-2:] == ["2", "1.2"]
    assert heads[-2:] == ["forgotten", "seconds"]
