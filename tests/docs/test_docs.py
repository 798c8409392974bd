"""The docs are in step with the code: pages, reference, links, commands, and the code and recipes that pages show."""

import re
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import numpy as np
import polars as pl
import pytest
from typer.main import get_command

import docs.make
import stillroom
from docs.make import DOCS, REFERENCE, main, own_operators, pages, stale
from flows.cli.app import COMMANDS, app
from flows.resolve import resolve
from stillroom import errors, registry
from stillroom.errors import RecipeErrors
from stillroom.images import encode_png

ROOT = Path(__file__).parents[2]
FOLDERS = ("stillroom", "schemas", "storage", "tasks", "flows", "recipes", "tests", "benchmarks", "docs")
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *(ROOT / folder / "README.md" for folder in FOLDERS[:-1])]
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page, as a reader would copy them."""
    return [dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)]


def commands_in(page: Path) -> list[list[str]]:
    """The words after `stillroom` of each command that a page shows, in a line of its fenced blocks or between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line.strip().removeprefix("$ ") for block in FENCED.findall(text) for line in block.split("\n")]
    lines += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return [line.partition("#")[0].split()[1:] for line in lines if line.startswith("stillroom ")]


@pytest.mark.parametrize("name", [name for name in own_operators() if not registry.load(name).hidden])  # no recipe can name a hidden one
def test_every_operator_has_a_page_with_a_recipe(name):
    text = (DOCS / "operators" / f"{name.replace('.', '/')}.md").read_text(encoding="utf-8")
    assert f"op: {name}" in text


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page):
    assert [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()] == []


def test_every_page_can_be_reached_from_the_index():
    reached, queue = set(), [DOCS / "README.md"]
    while queue:
        page = queue.pop()
        if page not in reached and page.suffix == ".md" and page.exists():
            reached.add(page)
            queue += [(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(shown(page) for page in DOCS.rglob("*.md") if page not in reached) == []


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_shown_exists(page):
    commands = get_command(app).commands
    for words in commands_in(page):
        assert words[0] in commands, f"stillroom {words[0]}"
        known = {name for parameter in commands[words[0]].params for name in [*parameter.opts, *parameter.secondary_opts]}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} - {*known, "--help", "--"} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_folder_stands_in_its_readme(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    inside = [path for path in (ROOT / folder).iterdir() if path.suffix in (".py", ".yaml", ".sh") or (path / "__init__.py").exists()]
    assert [path.name for path in inside if path.name != "__init__.py" and path.name not in text and f"{path.name}/" not in text] == []


def test_the_reference_is_what_the_code_says():
    assert stale() == []


def test_a_stale_page_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    old = tmp_path / "docs" / "reference" / "cli.md"
    monkeypatch.setattr(docs.make, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(docs.make, "pages", lambda: {old: "new", tmp_path / "docs" / "errors.md": "same"})
    monkeypatch.setattr(sys, "argv", ["docs.make", "--check"])
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (tmp_path / "docs" / "errors.md").write_text("same")
    assert main() == 1
    assert capsys.readouterr().err == "stale: docs/reference/cli.md; run `make docs`\n"
    monkeypatch.setattr(sys, "argv", ["docs.make"])
    assert main() == 0
    assert old.read_text() == "new"


def test_the_reference_names_every_command_and_error():
    made = pages()
    assert [name for name in COMMANDS if f"## stillroom {name}" not in made[REFERENCE / "cli.md"]] == []
    assert [name for name in errors.__all__ if f"**{name}**" not in made[REFERENCE / "errors.md"]] == []


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_resolves(recipe):
    try:
        assert any(stage.operator.name.startswith("evaluate.") for stage in resolve(recipe).stages.values())
    except RecipeErrors as missing:  # only `make data` brings the files
        assert all("is not there" in line for line in str(missing).split("\n"))


def test_the_recipe_of_the_guide_resolves(tmp_path, monkeypatch, photos):
    monkeypatch.setenv("PHOTOS", str(photos))
    whole = [block for block in blocks(DOCS / "guides" / "recipes.md", "yaml") if block.startswith("name:")]
    assert whole
    for number, text in enumerate(whole):
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
        assert resolve(tmp_path / f"{number}.yaml").stages


def test_the_recipe_of_the_readme_resolves(tmp_path, photos):
    (stages,) = [block for block in blocks(ROOT / "README.md", "yaml") if block.startswith("stages:")]
    (tmp_path / "photos.yaml").write_text(f"name: photos\n{stages}", encoding="utf-8")
    assert "proof" in resolve(tmp_path / "photos.yaml").stages


@pytest.fixture
def guide_operators(installing):
    """The operators of the guide, installed by the entry point that it shows."""
    page = DOCS / "guides" / "write-an-operator.md"
    operators = {f"{name[1]}/{name[2]}": code for code in blocks(page, "python") if (name := re.match(r'"""([a-z]+)\.([a-z]+): ', code))}
    (project,) = [tomllib.loads(block) for block in blocks(page, "toml")]
    with installing("mine", operators, project["project"]["entry-points"]["stillroom.operators"]):
        yield


def test_the_row_operator_of_the_guide_works_once_installed(guide_operators):
    images = [encode_png(pixels(level)) for level in (3, 200)] + [b"no image"]
    applied = stillroom.apply("filter.dark", pl.DataFrame({"sample_id": ["night", "day", "broken"], "image": images}), min_mean=20)
    assert applied.kept.select("sample_id", "mean_level").rows() == [("day", 200.0)]
    assert applied.removed["sample_id"].to_list() == ["night", "broken"]
    assert applied.removed["kind"].to_list() == ["dropped", "rejected"]
    assert applied.removed["reason"][0] == "mean level 3"


def test_the_select_operator_of_the_guide_works_once_installed(guide_operators):
    frame = pl.DataFrame({"sample_id": ["a", "b", "c", "d"], "width": [10, 40, 20, 20], "height": [10, 40, 20, 20]})
    applied = stillroom.apply("prune.largest", frame, keep_rows=2)
    assert applied.kept["sample_id"].to_list() == ["b", "c"]
    assert applied.removed.select("sample_id", "reason").rows() == [("a", "number 4 by size"), ("d", "number 3 by size")]


def test_the_code_on_randomness_holds():
    (code,) = blocks(DOCS / "concepts" / "randomness.md", "python")
    exec(compile(code, "randomness.md", "exec"), {})


@pytest.fixture
def photos(tmp_path):
    """A folder of images, a folder a class."""
    for name, level in (("cat", 40), ("dog", 90)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(encode_png(pixels(level)))
    return tmp_path / "photos"


def pixels(level):
    return np.full((16, 16, 3), level, np.uint8)
