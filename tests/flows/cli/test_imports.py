"""Which modules a command loads: what only looks must not wait for torch, Prefect, Great Expectations or diffusers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "diffusers", "transformers", "datasets", "prefect", "great_expectations", "pandas", "sklearn", "lancedb"}

LOADED = """
import json, sys
from flows.cli.app import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
json.dump({"code": code, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}, sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    """The top-level modules that `stillroom WORDS…` had loaded when it ended well."""
    ran = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True)
    ended = json.loads(ran.stderr[ran.stderr.rindex('{"code"') :])
    assert ended["code"] == 0, ran.stderr
    return set(ended["loaded"])


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["ui", "--help"]])
def test_help_loads_no_numerics_at_all(words):
    assert not loaded_by(*words) & (HEAVY | {"numpy", "pyarrow", "polars", "lance"})


@pytest.mark.parametrize("words", [["ops"], ["ops", "filter.exact_duplicates"], ["ops", "train.class_diffusion"]])
def test_ops_knows_every_operator_without_what_operators_run_on(words):
    assert not loaded_by(*words) & HEAVY


# A plan reads records, which are JSON: it has no table to open, no frame to fill.
@pytest.mark.parametrize("which", ["quickstart", "mini"])
def test_plan_looks_without_loading_what_runs(which, mini: Path, store: Path):
    path = mini if which == "mini" else Path(__file__).parents[3] / "recipes" / "quickstart.yaml"
    assert not loaded_by("plan", str(path), "--store", str(store)) & (HEAVY | {"lance", "polars", "multiprocessing"})


@pytest.mark.parametrize("words", [["show", "digits@1"], ["show", "digits@1", "--json"], ["snapshots"], ["runs"]])
def test_looking_at_a_store_loads_no_engine(words, published: Path):
    assert not loaded_by(*words, "--store", str(published)) & HEAVY


@pytest.mark.parametrize("form", ["parquet", "webdataset", "hf"])
def test_export_and_import_load_no_engine(form, tiny: Path, tmp_path: Path):
    heavy = HEAVY - {"pandas"}  # pyarrow loads it, if it is installed, to make an array of Python's objects
    assert not loaded_by("export", "pets@1", str(tmp_path / "out"), "--as", form, "--store", str(tiny)) & heavy
    if form == "parquet":
        assert not loaded_by("import", str(tmp_path / "out"), "--store", str(tmp_path / "other")) & heavy


@pytest.mark.parametrize(
    "words",
    [["diff", "little@1", "little@2"], ["diff", "little@1", "little@2", "--html", "PAGE"], ["explain", "little@1", "aa1"], ["show", "little@1", "--lineage"]],
)
def test_history_is_told_without_the_engine(words, little: Path, tmp_path: Path):
    words = [str(tmp_path / "page.html") if word == "PAGE" else word for word in words]
    # Lance itself imports pandas where there is one.
    assert not loaded_by(*words, "--store", str(little)) & (HEAVY - {"pandas"})
