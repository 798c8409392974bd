"""score.perceptual_hash against scipy's DCT, and what it should and should not tell apart."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.fft import dctn
from sklearn.datasets import load_sample_images

from stillroom.fields import image_field
from stillroom.images import decode_batch, encode_png
from tasks.score.perceptual_hash import perceptual_hash

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]


def hashes(*images: bytes | None) -> list[int | None]:
    schema = pa.schema([("sample_id", pa.string()), image_field()])
    batch = pa.record_batch([pa.array([str(place) for place in range(len(images))]), pa.array(images, pa.binary())], schema=schema)
    rows = perceptual_hash(batch)
    assert rows.dropped is rows.rejected is None
    assert rows.batch.schema.field("phash").type == pa.uint64()
    return rows.batch["phash"].to_pylist()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.mark.parametrize("image", [*map(encoded, PHOTOS), noise(0), noise(1)])
def test_agrees_with_the_dct_of_scipy(image):
    grey_HW = decode_batch([image], channels=1, side_px=32)[0, 0]
    coefficients = dctn(grey_HW.astype(np.float64), type=2)[:8, :8].ravel()
    bits = coefficients >= np.median(coefficients[1:])
    # Rounding the cosines may turn a bit whose coefficient lies next to the median.
    assert (hashes(image)[0] ^ int("".join(map(str, bits[::-1].astype(int))), 2)).bit_count() <= 1


def test_half_of_the_bits_are_set():
    assert [hash_.bit_count() for hash_ in hashes(noise(0), encoded(PHOTOS[0]))] == [33, 33]


@pytest.mark.parametrize(
    "changed",
    [
        lambda photo: encoded(photo, "JPEG", quality=50),
        lambda photo: encoded(photo, "WEBP", quality=70),
        lambda photo: encoded(photo.resize((photo.width // 3, photo.height // 3))),
        lambda photo: encoded(photo.convert("L")),
    ],
    ids=["jpeg", "webp", "smaller", "grey"],
)
def test_a_copy_keeps_its_hash_within_four_bits(changed):
    for photo in PHOTOS:
        original, copy = hashes(encoded(photo), changed(photo))
        assert (original ^ copy).bit_count() <= 4


def test_different_photos_are_far_apart():
    first, second = hashes(*map(encoded, PHOTOS))
    assert (first ^ second).bit_count() > 20


def test_flat_absent_and_broken_pictures_have_none():
    almost_flat = np.full((30, 30, 1), 200, np.uint8) + np.eye(30, dtype=np.uint8)[..., None]
    assert hashes(encode_png(np.full((9, 9, 3), 80, np.uint8)), encode_png(almost_flat), None, noise(0)[:200]) == [None] * 4


def test_a_hash_does_not_depend_on_the_batch():
    images = [noise(seed) for seed in range(5)]
    assert hashes(*images) == [hashes(image)[0] for image in images]


def test_no_rounding_noise_decides_the_odd_frequencies_of_a_symmetric_picture():
    left = np.random.default_rng(0).integers(0, 256, (32, 16, 1), np.uint8)
    (found,) = hashes(encode_png(np.concatenate([left, left[:, ::-1]], axis=1)))
    # They are all zero, so all or none are at least the median.
    odd = [(found >> 8 * down + across) & 1 for down in range(8) for across in range(1, 8, 2)]
    assert len(set(odd)) == 1
