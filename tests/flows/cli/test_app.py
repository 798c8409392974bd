"""The command as a whole: what it lists, and how errors, Ctrl-C and slips of the pen end."""

from pathlib import Path

import pytest

import flows.build
import flows.cli
from flows.cli.app import COMMANDS

# What stands beside the commands in their folder.
HELPERS = {"__init__", "app", "bar", "diff_table", "explain_table", "judged_table", "progress", "proof_table", "shared"}


def test_every_file_of_the_folder_is_a_command_with_a_function_of_its_name():
    files = {path.stem for path in Path(flows.cli.__path__[0]).glob("*.py")} - HELPERS
    # A command that Python keeps as a word stands in a file with an underscore behind it: `import_.py`.
    assert {name.removesuffix("_") for name in files} == set(COMMANDS)


def test_help_lists_the_commands_in_the_order_in_which_one_meets_them(stillroom):
    listed = stillroom("--help").stdout
    places = [listed.index(f"│ {name} ") for name in COMMANDS]
    assert places == sorted(places)


def test_a_mistyped_command_gets_the_nearest_one(stillroom):
    ended = stillroom("bild")
    assert (ended.exit_code, "Did you mean 'build'" in ended.stderr) == (2, True)


def test_every_fault_of_a_recipe_is_a_line_and_none_a_traceback(stillroom, recipe):
    path = recipe(
        """
name: typos
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validaton: 20%}
  core: {op: prune.randm, from: split.train, keep: 10%}
  rest: {op: prune.random, from: splt.train, keep: 10%}
"""
    )
    ended = stillroom("plan", path)
    lines = ended.stderr.splitlines()
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert sorted(line.split("'")[1] for line in lines) == ["core", "rest", "split"]
    assert all(line.startswith("error: stage '") and "did you mean '" in line for line in lines)


def test_ctrl_c_ends_with_130_and_the_command_to_go_on(stillroom, mini, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(flows.build, "build_recipe", interrupted)
    ended = stillroom("build", mini, "--store", "here")
    assert ended.exit_code == 130
    (line,) = ended.stderr.splitlines()
    assert line == f"interrupted; go on with: stillroom build {mini} --store {Path('here').absolute()}"


def test_a_bug_is_not_dressed_as_an_error_of_the_user(stillroom, mini, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(flows.build, "build_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        raise stillroom("build", mini).exception
