"""Decoded images beside encoded ones: stored where they are small and alike, with the same digest, and what a trainer then reads."""

import json
from collections.abc import Callable, Sequence

import lance
import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3

from stillroom.errors import StageError
from stillroom.fields import image_field, pixels_shape
from stillroom.images import encode_png
from stillroom.records import Record, TableRef
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from storage.commits import commit_fragments, write_batches
from storage.publish import WrittenSnapshot, write_snapshot
from storage.records import put_record

Put = Callable[[Sequence[bytes | None]], TableRef]


@pytest.fixture
def put(store) -> Put:
    """Stores images as a stage's table of one split."""
    schema = with_hashes(pa.schema([("sample_id", pa.string()), image_field(), ("split", pa.string())]))

    def make(encoded: Sequence[bytes | None]) -> TableRef:
        images = pa.array(encoded, pa.binary())
        table = pa.table([[f"{row:03}" for row in range(len(images))], images, hashes(images), ["train"] * len(images)], schema=schema)
        name, home = "stages/pets.all", Store(store)
        fragments = write_batches(home, name, table.to_batches(), schema)
        ref = commit_fragments(
            home, name, schema, fragments, fingerprint=blake3(json.dumps(hashes(images).to_pylist(), default=bytes.hex).encode()).hexdigest()
        )
        put_record(home, Record(ref.fingerprint, name, "made.up", {}, ref, None, {}, {}), {})
        return ref

    return make


def noise(count: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 255, (count, *shape), np.uint8))


def written(store, ref: TableRef, decoded: str = "auto") -> tuple[WrittenSnapshot, pa.Table]:
    snapshot = write_snapshot(str(store), "pets", [("train", ref)], 7, blake3(decoded.encode()).hexdigest(), decoded=decoded)
    return snapshot, lance.dataset(f"{store}/pets.lance", version=snapshot.table.version).to_table()


def test_small_images_alike_in_shape_are_stored_decoded_and_count_for_no_digest(store, put):
    pixels = noise(50, 6, 5, 3)
    ref = put([encode_png(pixels_HWC) for pixels_HWC in pixels])
    snapshot, rows = written(store, ref)
    assert snapshot.decoded["stored"] and snapshot.decoded["shape"] == [3, 6, 5]
    field = rows.schema.field("image_pixels")
    assert pixels_shape(field) == (3, 6, 5)
    for sample_id, found in zip(rows["sample_id"].to_pylist(), rows["image_pixels"].to_pylist(), strict=True):
        assert (np.frombuffer(found, np.uint8).reshape(3, 6, 5).transpose(1, 2, 0) == pixels[int(sample_id)]).all()
    without, plain = written(store, ref, "never")
    assert "image_pixels" not in plain.schema.names
    assert (without.table.digest, without.columns) == (snapshot.table.digest, snapshot.columns)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        ([*noise(3, 6, 5, 3), *noise(1, 5, 6, 3)], "they differ in shape"),
        ([*noise(3, 6, 5, 3), *noise(1, 6, 5, 1)], "they differ in shape"),
        ([np.zeros((64, 64, 3), np.uint8)] * 3, "they are 1"),  # a plain surface: PNG makes hundreds of bytes of it
        ([None, *noise(3, 6, 5, 3)], "a row has no image"),
        ([], "there are none"),
    ],
)
def test_others_are_not_and_the_manifest_says_why(store, put, images, why):
    ref = put([None if pixels_HWC is None else encode_png(pixels_HWC) for pixels_HWC in images])
    snapshot, rows = written(store, ref)
    assert not snapshot.decoded["stored"] and snapshot.decoded["why"].startswith(why)
    assert "image_pixels" not in rows.schema.names


def test_large_ones_are_stored_decoded_where_the_recipe_insists(store, put):
    ref = put([encode_png(np.full((64, 64, 3), shade, np.uint8)) for shade in range(3)])
    assert "image_pixels" in written(store, ref, "always")[1].schema.names
    odd = put([encode_png(pixels_HWC) for pixels_HWC in (*noise(1, 4, 4, 1), *noise(1, 5, 5, 1))])
    with pytest.raises(StageError, match=r"publish.decoded is always, and images can't be stored decoded: they differ in shape; leave it at auto"):
        written(store, odd, "always")


def test_one_odd_image_among_many_is_found(store, put):
    pixels = [*noise(1200, 4, 4, 1)]
    pixels[1001] = np.zeros((4, 5, 1), np.uint8)
    snapshot, _ = written(store, put([encode_png(pixels_HWC) for pixels_HWC in pixels]))
    assert snapshot.decoded["why"] == "they differ in shape"
