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


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with little@1 and little@2, written without a build: one source, three pictures; in the second one label is another."""
    import pyarrow as pa

    from stillroom.digests import json_digest
    from stillroom.fields import image_field, label_field
    from stillroom.format import prepare
    from stillroom.stored import hashes, with_hashes
    from stillroom.stores import Store
    from storage.commits import commit_fragments, version_facts, write_batches
    from storage.publish import publish_manifest

    store = Store(tmp_path_factory.mktemp("little") / "store")
    prepare(store)
    images = pa.array([encode_png(picture(90, seed)) for seed in range(3)], pa.binary())
    for number, labels in enumerate(([0, 0, 1], [0, 1, 1]), start=1):
        fields = [
            pa.field("sample_id", pa.string()),
            image_field(),
            label_field(["cat", "dog"]),
            pa.field("source", pa.string()),
            pa.field("split", pa.string()),
            pa.field("parents", pa.list_(pa.string())),
        ]
        schema = with_hashes(pa.schema(fields))
        values = {
            "sample_id": ["aa1", "ab2", "ab3"], "image": images, "image_hash": hashes(images), "label": labels,
            "source": ["x/1.png", "x/2.png", "y/2.png"], "split": ["train", "train", "test"], "parents": [None, ["aa1", "zz9"], None],
        }  # fmt: skip
        batch = pa.record_batch([pa.array(values[field.name], field.type) for field in schema], schema=schema)
        fingerprint = json_digest(number)
        raw, table = (
            commit_fragments(store, name, schema, write_batches(store, name, [batch], schema), fingerprint=fingerprint)
            for name in ("stages/little.raw", "little")
        )
        stage = {
            "name": "raw", "op": "ingest.image_folder", "version": 1, "shape": "source", "gives": "samples", "hidden": False, "state": "Built", "seed": None,
            "fingerprint": fingerprint, "inputs": {}, "params": {"path": f"x{number}"}, "seconds": 1.0, "rows": 3, "digest": fingerprint, "metrics": {},
            "counts": {"in": 3, "out": 3, "dropped": 0, "rejected": 0, "merged": 0}, "table": {"name": raw.name, "version": raw.version}, "removed": None,
        }  # fmt: skip
        publish_manifest(
            store,
            {
                "format": 1, "name": "little", "digest": fingerprint, "rows": 3, "splits": {"train": 2, "test": 1}, "files": version_facts(store, [table], {}),
                "table": {"name": "little", "version": table.version, "fingerprint": fingerprint, "rows": 3, "digest": fingerprint, "columns": {}}, "seed": 7,
                "recipe": {"text": f"name: little  # {number}\n", "path": "little.yaml", "overrides": []}, "trial": False, "bytes": 0, "stages": [stage],
                "published": {"train": {"stage": "raw", "split": "train"}, "test": {"stage": "raw", "split": "test"}}, "gates": [], "proof": None, "seconds": 1.0,
                "environment": {"python": "3.11.7", "packages": {}},
            },
        )  # fmt: skip
    return Path(store.uri)
