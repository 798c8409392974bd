"""What plan says of rows to work on is what a build then works on."""

import pytest

from flows.build import build_recipe
from flows.plan import make_plan
from flows.touches import Touch, touches
from tests.photos import paint

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECIPE = """name: growing
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos, shard_rows: 8}
  sound: {op: filter.decodable, from: raw}
  hashed: {op: score.perceptual_hash, from: sound}
  split: {op: table.split, from: hashed, validation: 20%, test: 20%}
"""


def test_plan_says_what_the_next_build_works_on(tmp_path, store):
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(RECIPE)
    for number in range(100, 180):
        paint(tmp_path, number)

    def planned() -> dict[str, Touch]:
        return touches(make_plan(recipe, store))

    def built(until: str | None = None) -> dict[str, tuple[int, int]]:
        return {line["name"]: (line["worked"], line["taken"]) for line in build_recipe(recipe, store, until=until, workers=1).stages}

    said = planned()
    assert said["raw"] == Touch(80, 80)
    assert said["hashed"] == Touch(80, 80, "at most")
    assert set(built().values()) == {(80, 0)}
    assert planned() == {}

    for number in (180, 181):
        paint(tmp_path, number)
    said, done = planned(), built(until="raw")
    assert said["raw"].of == 82
    assert said["raw"].bound == "at least"
    assert done["raw"] == (said["raw"].rows, 82 - (said["raw"].rows or 0))
    assert 2 <= done["raw"][0] < 60
    assert said["sound"] == said["hashed"] == said["split"] == Touch(done["raw"][0], 82, "at most")

    # The input is there now: the rows are compared, and the figure is the one.
    said = planned()
    assert said["sound"] == Touch(2, 82)
    done = built()
    assert done["sound"] == done["hashed"] == done["split"] == (2, 80)

    (tmp_path / "photos/a/100.png").unlink()
    looked = make_plan(recipe, store).looked
    assert (looked.trusted, looked.read) == (81, 0)
    looked = make_plan(recipe, store, rehash=True).looked
    assert (looked.trusted, looked.read) == (0, 81)


def test_what_trains_counts_the_rows_that_it_learns_from_and_a_mix_those_of_all_inputs(tmp_path, store):
    recipe = tmp_path / "learning.yaml"
    teacher = "  teacher: {op: train.teacher, from: {samples: split.train, check_on: split.validation}, net: mlp, steps: 1}\n"
    recipe.write_text(RECIPE + teacher + "  both: {op: table.mix, from: {one: split.train, two: hashed}}\n")
    for number in range(100, 120):
        paint(tmp_path, number)
    said = touches(make_plan(recipe, store))
    assert said["teacher"] == Touch(20, 20, "at most")
    assert said["both"] == Touch(40, 40, "at most")
