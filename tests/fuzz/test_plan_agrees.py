"""C10: over any changes of recipe, files and store, the stages that plan says will run are those that a build runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.plan import Plan, make_plan
from stillroom.stores import Store
from storage.gc import Policy, gc
from tests.fuzz.builds import Killed, build, dying
from tests.fuzz.mutations import fuzz
from tests.photos import paint

RECIPE = """name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  clean: {op: filter.near_duplicates, from: split, max_distance: 1}
  looks: {op: score.embed, from: clean.train, net: pixels, side_px: 4, channels: 1}
  core: {op: prune.random, from: looks, keep: 50%}
publish:
  splits: {train: core, test: clean.test}
"""
OVERRIDES = st.sampled_from(["core.keep=50%", "core.keep=80%", "looks.side_px=5", "clean.max_distance=0", "split.test=30%", "core.seed=3", "seed=8"])
TEXTS = {
    "a stage gets another name": lambda text: text.replace("looks", "seen"),
    "another column comes in between": lambda text: text.replace("from: clean.train", "from: hashes.train").replace(
        "  looks", "  hashes: {op: score.perceptual_hash, from: clean}\n  looks"
    ),
    "an ingest takes a stage's name": lambda text: text.replace("  looks: {op: score.embed, from: clean.train, net: pixels, side_px: 4, channels: 1}\n", "").replace(
        "from: looks", "from: clean.train"
    ),
    "a comment": lambda text: f"# hello\n{text}",
}  # fmt: skip
FILES = ["touched", "changed in place", "moved", "gone", "new"]
STEPS = st.one_of(
    st.tuples(st.just("override"), OVERRIDES),
    st.tuples(st.just("text"), st.sampled_from(sorted(TEXTS))),
    st.tuples(st.just("file"), st.sampled_from(FILES)),
    st.tuples(st.just("gc"), st.sampled_from([None, 1])),
    st.tuples(st.just("until"), st.sampled_from(["split", "clean"])),
    st.tuples(st.just("death"), st.integers(5, 90)),
    st.tuples(st.just("back"), st.none()),
)


@pytest.fixture
def home(tmp_path: Path) -> Callable[[], Path]:
    """Makes a folder anew with sixteen photos and the recipe."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        for number in range(16):
            paint(tmp_path / "home", number)
        (tmp_path / "home" / "pets.yaml").write_text(RECIPE)
        return tmp_path / "home"

    return make


def change_files(folder: Path, kind: str, step: int) -> None:
    path = sorted((folder / "photos").rglob("*.png"))[step]
    if kind == "touched":
        os.utime(path)
    elif kind == "changed in place":
        paint(folder, 100 + step, seed=200 + step).rename(path)
    elif kind == "moved":
        path.rename(path.with_name(f"{step}-moved.png"))
    elif kind == "gone":
        path.unlink()
    else:
        paint(folder, 50 + step)


def told(plan: Plan) -> list[tuple[str, str, bool, bool]]:
    return [(stage.name, stage.prints.table, stage.runs, stage.reuse) for stage in plan.stages]


@fuzz(5)
@given(steps=st.lists(STEPS, min_size=2, max_size=4))
def test_what_plan_says_is_what_build_does(home, steps):
    folder = home()
    recipe, store, overrides = folder / "pets.yaml", folder / "store", dict[str, str]()
    build(recipe, store)
    for number, (kind, what) in enumerate(steps):
        until, death = (what if kind == "until" else None), (what if kind == "death" else None)
        if kind == "override":
            overrides[what.partition("=")[0]] = what
        elif kind == "text":
            recipe.write_text(TEXTS[what](RECIPE))
            overrides = {name: value for name, value in overrides.items() if not name.startswith("looks.")}
        elif kind == "file":
            change_files(folder, what, number)
        elif kind == "gc":
            gc(Store(store), Policy(what))
        elif kind == "back":
            recipe.write_text(RECIPE)
            overrides.clear()
        elif kind == "death":
            overrides["core.keep"] = "core.keep=90%"
        planned = make_plan(recipe, store, list(overrides.values()), until=until)
        with dying(store, death):
            try:
                built = build(recipe, store, list(overrides.values()), until)
            except Killed:
                continue
        assert told(planned) == told(built.plan)
        assert built.ran == {stage.name for stage in planned.running}
        again = make_plan(recipe, store, list(overrides.values()), until=until)
        assert again.running == []
