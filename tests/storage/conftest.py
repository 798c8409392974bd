"""What the tests of storage share: a snapshot made of rows, without a build."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field, vector_field
from stillroom.format import prepare
from stillroom.images import encode_png
from stillroom.integrity import file_facts
from stillroom.snapshots import Snapshot
from stillroom.snapshots import open as open_snapshot
from stillroom.soft_labels import encode, soft_label_type
from stillroom.stored import hash_field, hashes, table_bytes
from stillroom.stores import Store
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field
from storage.commits import commit_fragments, data_files, version_facts, write_batches
from storage.manifests import write_report
from storage.publish import publish_manifest
from storage.tally import Tally


@pytest.fixture(scope="session")
def publish() -> Callable[..., Snapshot]:
    """Makes a table that has `split` a snapshot, as a build would: complete, counted, with a manifest."""

    def make(store: Path | str, table: pa.Table, name: str = "pets", **more: Any) -> Snapshot:
        home = Store(store)
        prepare(home)
        tally = Tally(table.schema)
        fragments = write_batches(home, name, tally.watch(table.to_batches(max_chunksize=100)), table.schema)
        known = file_facts(home, data_files(name, fragments))
        counted = tally.as_json()
        ref = commit_fragments(home, name, table.schema, fragments, fingerprint=counted["digest"])
        home.put_json(f"published/{ref.fingerprint}.leaves", {"leaves": counted["leaves"]})
        splits = {split: table["split"].to_pylist().count(split) for split in dict.fromkeys(table["split"].to_pylist())}
        where = {
            "name": name,
            "version": ref.version,
            "fingerprint": ref.fingerprint,
            "rows": ref.rows,
            "digest": counted["digest"],
            "columns": counted["columns"],
        }
        manifest = {
            "format": 1,
            "name": name,
            "digest": counted["digest"],
            "rows": ref.rows,
            "splits": splits,
            "table": where,
            "files": version_facts(home, [ref], known),
            "recipe": {"text": f"name: {name}", "path": f"{name}.yaml", "overrides": []},
            "seed": 7,
            "trial": False,
            "bytes": table_bytes(home, ref),
            "stages": [],
            "gates": [],
            "proof": None,
            "seconds": 1.5,
        }
        published = publish_manifest(home, manifest | more)
        write_report(home, name, published["number"], f"<h1>{name}</h1>")
        return open_snapshot(f"{name}@{published['number']}", home)

    return make


@pytest.fixture(scope="session")
def samples() -> Callable[..., pa.Table]:
    """Makes rows such as a build leaves: pictures, labels, scores, an embedding, two stored views with soft labels."""

    def make(splits: dict[str, int], classes: tuple[str, ...] = ("cat", "dog", "Ölkäfer"), top_k: int | None = None) -> pa.Table:
        count, numbers = sum(splits.values()), np.random.default_rng(1)
        ids = [f"{number:04x}" for number in range(count)]
        labels = [number % len(classes) for number in range(count)]
        images = pa.array([encode_png(numbers.integers(0, 255, (4, 4, 3), np.uint8)) for _ in ids], pa.binary())
        label = soft_label_type(len(classes), top_k)
        views = views_field(view_contract(ViewPolicy()), label, {"num_classes": len(classes), "top_k": top_k, "temperature": 1.0})
        schema = pa.schema(
            [
                ("sample_id", pa.string()),
                image_field(),
                hash_field("image"),
                label_field(classes),
                ("label_name", pa.string()),
                ("source", pa.string()),
                ("el2n", pa.float32()),
                vector_field("embedding", 3),
                hash_field("embedding"),
                views,
                ("split", pa.string()),
            ]
        )
        drawn = draw_views(ViewPolicy(), ids, np.full((count, 2), 4), Draw(7, "test"), 2)
        soft = encode(numbers.dirichlet(np.ones(len(classes)), 2 * count), top_k)
        flat = pa.StructArray.from_arrays([*drawn.flatten().flatten(), soft], fields=list(views.type.value_type))
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(numbers.normal(size=3 * count), pa.float32()), 3)
        return pa.table(
            [
                pa.array(ids),
                images,
                hashes(images),
                pa.array(labels, pa.int64()),
                pa.array([classes[label] for label in labels], pa.string()),
                pa.array([f"a/{number}.05.png" for number in range(count)], pa.string()),
                pa.array(numbers.random(count), pa.float32()),
                embedding,
                hashes(embedding),
                pa.ListArray.from_arrays(drawn.offsets, flat),
                pa.array([split for split, rows in splits.items() for _ in range(rows)], pa.string()),
            ],
            schema=schema,
        )

    return make
