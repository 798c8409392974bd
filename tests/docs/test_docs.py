"""The docs are in step with the code: pages, reference, links."""

import re
from pathlib import Path

import pytest

from docs.make import pages, stale
from stillroom import errors, registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_every_operator_has_a_page_with_a_recipe(name):
    if registry.load(name).hidden:
        pytest.skip("hidden: no recipe can name it")
    text = (ROOT / "docs" / "operators" / f"{name.replace('.', '/')}.md").read_text()
    assert f"op: {name}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_is_what_the_code_says():
    assert stale() == []


def test_the_reference_names_every_command_and_error():
    from flows.cli.app import COMMANDS

    made = "\n".join(pages().values())
    assert [name for name in COMMANDS if f"## stillroom {name}" not in made] == []
    assert [name for name in errors.__all__ if f"**{name}**" not in made] == []


def test_the_quickstart_and_every_shipped_recipe_resolve(tmp_path):
    from flows.resolve import resolve
    from stillroom.errors import RecipeErrors

    assert "proof" in resolve(ROOT / "recipes" / "quickstart.yaml").stages
    try:
        resolve(ROOT / "recipes" / "fashion_mnist.yaml")
    except RecipeErrors as missing:  # only `make data` brings the files
        assert all("is not there" in line for line in str(missing).split("\n"))
