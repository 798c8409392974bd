"""Recipes that nobody should have written: resolve and plan answer with faults, a line each, and nothing is written or run."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.plan import make_plan
from schemas.yaml import read_yaml
from stillroom.errors import RecipeErrors
from tests.fuzz.mutations import ODD_TEXT, ODD_VALUES, damaged, fuzz, nothing_outside, refused_or_fine, twisted

ROOT = Path(__file__).parents[2]
# The digits come from scikit-learn: a source that needs no files.
RECIPES = [(ROOT / "recipes" / name).read_text() for name in ("quickstart.yaml", "fashion_mnist.yaml")]
TREES = [read_yaml(text).value for text in RECIPES]
PIECES = st.sampled_from(
    [
        "&a ", "*a", "!!python/object/apply:os.system [touch ran]", "!!binary x", "<<: *a", "? [a]\n: b", "%TAG ! x\n---\n", "---\n", "...\n", "\t", "\ufeff", "\x85", "\u2028",
        "{" * 200, "[" * 200, "- " * 200, "9" * 5000, "0x" + "f" * 200, "1e400", ".nan", "-.inf", "|+9\n", ">\n", "'", '"\\ud800"', '"\\x00"', "# ", ": ", ", ",
    ]
)  # fmt: skip


def planned(text: bytes, tmp_path: Path, overrides: list[str] | None = None) -> None:
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    recipe = place / "recipe.yaml"
    recipe.write_bytes(text)
    with nothing_outside(place):
        answer = refused_or_fine(lambda: make_plan(recipe, place / "store", overrides or []))
    if isinstance(answer, RecipeErrors):
        assert all("\n" not in str(fault) for fault in answer.args), str(answer)
    assert not (place / "store").exists() and sorted(path.name for path in place.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize("place", range(len(RECIPES)))
@fuzz(25)
@given(st.data())
def test_damaged_bytes(place, tmp_path, data):
    planned(data.draw(damaged(RECIPES[place].encode())), tmp_path)


@fuzz(25)
@given(text=st.sampled_from(RECIPES), pieces=st.lists(st.tuples(st.integers(0, 3000), PIECES | ODD_TEXT), min_size=1, max_size=4))
def test_pieces_of_yaml_where_they_do_not_belong(text, pieces, tmp_path):
    for at, piece in pieces:
        text = text[:at] + piece + text[at:]
    planned(text.encode(errors="surrogatepass"), tmp_path)


@fuzz(80)
@given(st.data())
def test_twisted_trees(tmp_path, data):
    tree = data.draw(twisted(deepcopy(data.draw(st.sampled_from(TREES)))))
    planned(json.dumps(tree, ensure_ascii=data.draw(st.booleans())).encode(errors="surrogatepass"), tmp_path)


@fuzz(25)
@given(
    stage=st.sampled_from(sorted(TREES[0]["stages"])) | ODD_TEXT,
    field=st.sampled_from(["keep", "views.count", "path", "seed", "op", ""]) | ODD_TEXT,
    value=ODD_VALUES,
)
def test_odd_overrides(stage, field, value, tmp_path):
    planned(RECIPES[0].encode(), tmp_path, [f"{stage}.{field}={value}"])
