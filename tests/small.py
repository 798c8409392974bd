"""A small snapshot, made without a build: pictures of digits' size, stored views with soft labels."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field
from stillroom.format import prepare
from stillroom.images import encode_png
from stillroom.soft_labels import encode, soft_label_type
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field
from storage.commits import commit_fragments, version_facts, write_batches
from storage.manifests import promote
from storage.publish import publish_manifest

CLASSES, VIEWS = 3, 2
POLICY = ViewPolicy(kinds=("identity", "crop"))


def publish_small(store: Path | str, name: str = "digits", splits: dict[str, int] | None = None, policy: ViewPolicy = POLICY) -> None:
    """Publish and promote `name@1` with rows s0, s1, … of 8x8 px, each class bright in other columns, and views of a policy."""
    splits = splits or {"train": 103, "test": 20}
    rows = sum(splits.values())
    ids, labels = [f"s{row}" for row in range(rows)], [row % CLASSES for row in range(rows)]
    numbers = np.random.default_rng(0)
    bright = np.arange(8)[:, None] * CLASSES // 8
    pictures = [numbers.integers(0, 60, (8, 8, 1), np.uint8) + 180 * (bright == label).astype(np.uint8) for label in labels]
    images = pa.array([encode_png(pixels) for pixels in pictures], pa.binary())
    drawn = draw_views(policy, ids, np.tile([8, 8], (rows, 1)), Draw(0, "test"), VIEWS)
    field = views_field(view_contract(policy), soft_label_type(CLASSES, None), {"num_classes": CLASSES, "top_k": None, "temperature": 1.0})
    probs = np.repeat(0.1 + 0.7 * np.eye(CLASSES)[labels], VIEWS, axis=0)
    views = pa.ListArray.from_arrays(
        drawn.offsets, pa.StructArray.from_arrays([*drawn.values.flatten(), encode(probs, None)], fields=list(field.type.value_type))
    )
    label = label_field([f"class {number}" for number in range(CLASSES)])
    schema = with_hashes(pa.schema([("sample_id", pa.string()), image_field(), label, field, ("split", pa.string())]))
    columns = {"sample_id": ids, "image": images, "image_hash": hashes(images), "label": labels, "views": views}
    columns["split"] = [split for split, count in splits.items() for _ in range(count)]
    table = pa.table([columns[column.name] for column in schema], schema=schema)
    home, digest = Store(store), f"{rows:032x}"
    prepare(home)
    ref = commit_fragments(home, name, schema, write_batches(home, name, table.to_batches(), schema), fingerprint=digest)
    where = {"name": name, "version": ref.version, "rows": rows, "fingerprint": digest, "digest": digest, "columns": {}}
    manifest = {"name": name, "digest": digest, "rows": rows, "trial": False, "splits": splits, "table": where, "stages": []}
    publish_manifest(home, {**manifest, "files": version_facts(home, [ref], {})})
    promote(home, name, 1, "for this test")
