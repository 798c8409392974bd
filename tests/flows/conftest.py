"""A store that was really built, for everything that looks at history: two snapshots of a folder of small pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stillroom.images import encode_png

RECIPE = """name: pets
seed: 7
stages:
  raw: {op: ingest.image_folder, path: photos}
  fixed: {op: table.relabel, from: raw, file: fixes.csv, by: source}
  split: {op: table.split, from: fixed, validation: 20%, test: 20%}
  clean: {op: filter.near_duplicates, from: split, max_distance: 2}
  scores: {op: score.dynamics, from: clean.train, net: mlp, epochs: 1, el2n_epochs: [1], seeds: 1}
  core: {op: prune.by_score, from: scores, score: el2n, order: easiest, keep: 50%}
  teacher: {op: train.teacher, from: {samples: clean.train, check_on: clean.validation}, net: mlp, steps: 20}
  painter: {op: train.class_diffusion, from: clean.train, width: 8, steps: 2, batch_size: 8}
  painted: {op: generate.class_diffusion, from: painter, per_class: 1, steps: 2}
  mixed: {op: table.mix, from: {real: core, synthetic: painted}}
  reinforced: {op: reinforce.teacher, from: {samples: mixed, teacher: teacher}, views: {count: 2, policy: [identity, affine]}}
publish:
  splits: {train: reinforced, validation: clean.validation, test: clean.test}
  require: {max_rejects: 10%}
"""


@dataclass(frozen=True)
class Pets:
    """The store, the folder that its pictures came from, and the recipe."""

    store: Path
    photos: Path
    recipe: Path


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pets]:
    """pets@1, and pets@2 with one more picture, one more corrected label and a larger core.

    Besides thirty pictures a class there are a copy of cat/00.png, a twin of dog/01.png that one
    level of one pixel tells apart, and a picture that is cut off.
    """
    from flows.build import build_recipe

    folder = tmp_path_factory.mktemp("history")
    photos, recipe = folder / "photos", folder / "pets.yaml"
    for label, mean in (("cat", 90), ("dog", 130)):
        (photos / label).mkdir(parents=True)
        for number in range(30):
            (photos / label / f"{number:02}.png").write_bytes(encode_png(picture(mean, number)))
    (photos / "cat" / "copy.png").write_bytes((photos / "cat" / "00.png").read_bytes())
    twin = picture(130, 1)
    twin[0, 0] += 1
    (photos / "dog" / "twin.png").write_bytes(encode_png(twin))
    (photos / "dog" / "broken.png").write_bytes((photos / "dog" / "00.png").read_bytes()[:60])
    recipe.write_text(RECIPE)
    (folder / "fixes.csv").write_text("source,label_name\ncat/02.png,dog\n")
    assert build_recipe(str(recipe), folder / "store", workers=1).snapshot == "pets@1"
    (photos / "dog" / "new.png").write_bytes(encode_png(picture(130, 99)))
    (folder / "fixes.csv").write_text("source,label_name\ncat/02.png,dog\ncat/03.png,dog\n")
    assert build_recipe(str(recipe), folder / "store", ["core.keep=80%"], workers=1).snapshot == "pets@2"
    yield Pets(folder / "store", photos, recipe)


def picture(mean: int, seed: int) -> np.ndarray:
    """Noise around a level, uint8 [12, 12, 1]."""
    return np.clip(np.random.default_rng([mean, seed]).normal(mean, 30, (12, 12, 1)), 0, 250).astype(np.uint8)
