"""Samples as arrays: what is read, and what is refused by one line."""

import numpy as np
import pyarrow as pa
import pytest

from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png, resize
from stillroom.tables import MemoryTable
from tasks.nets.samples import load_images, load_labelled, load_labels


def image(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def samples(pixels: list[np.ndarray | bytes], labels: list[int | None] | None = None, names: list[str] | None = None) -> MemoryTable:
    label = label_field(names) if names else pa.field("label", pa.int64())
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label])
    encoded = [entry if isinstance(entry, bytes) else encode_png(entry) for entry in pixels]
    return MemoryTable(pa.table([[f"s{row}" for row in range(len(pixels))], encoded, labels or [0] * len(pixels)], schema=schema))


def test_reads_all_images_in_order(tmp_path):
    pixels = [image(4, 4, seed=row) for row in range(300)]  # more than are read at once
    found = load_images(samples(pixels), tmp_path)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, np.stack(pixels).transpose(0, 3, 1, 2))


def test_makes_images_alike_when_told_to(tmp_path):
    found = load_images(samples([image(4, 6), image(5, 5, 3)]), tmp_path, side_px=5, channels=3)
    assert found.shape == (2, 3, 5, 5)
    assert np.array_equal(found[0], np.repeat(resize(image(4, 6).transpose(2, 0, 1)[None], 5)[0], 3, axis=0))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        ([image(4, 6)], "images: row 0 has 6x4 pixels, a square is needed; give side_px, and all are resized to it"),
        ([image(4, 4)] * 256 + [image(5, 5)], "images: row 0 has 4 px and 1 channel, row 256 has 5 px and 1 channel; give side_px and channels"),
        ([image(4, 4)] * 256 + [image(4, 4, 3)], "images: row 0 has 4 px and 1 channel, row 256 has 4 px and 3 channels; give side_px and channels"),
        ([image(4, 4), b"no image"], "images: from row 0: row 1: not an image"),
        ([], "samples: there are none"),
    ],
)
def test_what_cant_be_one_array_is_refused(tmp_path, pixels, said):
    with pytest.raises(InputError) as refused:
        load_images(samples(pixels), tmp_path)
    assert str(refused.value).startswith(said)


def test_labels_come_with_their_names():
    labels, names = load_labels(samples([image(2, 2)] * 3, [1, 0, 1], ["no", "yes"]))
    assert (labels.tolist(), names) == ([1, 0, 1], ["no", "yes"])
    assert load_labels(samples([image(2, 2)] * 2, [2, 0]))[1] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None, None], "label: 2 of 3 rows have none; drop them before this stage"),
        ([0, 2, 1], "label: 2 is none of the 2 classes"),
        ([0, -1, 1], "label: -1 is none"),
    ],
)
def test_labels_outside_the_classes_are_refused(labels, said):
    with pytest.raises(InputError) as refused:
        load_labels(samples([image(2, 2)] * 3, labels, ["no", "yes"]))
    assert str(refused.value).startswith(said)


def test_labelled_images_say_what_a_net_needs(tmp_path):
    pixels = [image(4, 4, 3, seed=row) for row in range(4)]
    found = load_labelled(samples(pixels, [0, 1, 1, 0], ["no", "yes"]), tmp_path)
    assert found.shape == {"num_classes": 2, "channels": 3, "side_px": 4}
    assert found.config("cnn") == {
        "task": "classify", "net": "cnn", "num_classes": 2, "channels": 3, "side_px": 4, "label_names": ["no", "yes"], "mean": found.mean, "std": found.std,
    }  # fmt: skip
    images, labels = found.at(np.array([2, 0]))
    assert np.array_equal(images.numpy()[1], pixels[0].transpose(2, 0, 1))
    assert labels.tolist() == [1, 0]
    assert found.sample_ids == ["s0", "s1", "s2", "s3"]
