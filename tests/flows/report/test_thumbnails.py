"""Thumbnails: pixels against plain means, and a budget that noise can't break."""

from base64 import b64decode

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.report.thumbnails import data_uri, image_column, pictures, shrink, side_for
from stillroom.fields import image_field
from stillroom.images import decode, encode_png
from stillroom.tables import MemoryTable


def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks():
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    means = pixels_HWC.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrink(pixels_HWC, 48) - means).max() <= 0.5


@given(st.integers(1, 400), st.integers(1, 400), st.integers(24, 80), st.integers(0, 255))
def test_a_flat_image_stays_flat_and_keeps_its_shape(height, width, side_px, grey):
    small = shrink(np.full((height, width, 1), grey, np.uint8), side_px)
    assert (small == grey).all()
    assert max(small.shape) <= max(side_px, 1)
    if max(height, width) > side_px:
        assert max(small.shape) == side_px
        assert small.shape[:2] == tuple(max(1, round(size * side_px / max(height, width))) for size in (height, width))


def test_a_small_image_is_shown_as_it_is():
    pixels_HWC = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    kind, _, encoded = data_uri(shrink(pixels_HWC, 24)).partition(",")
    assert kind == "data:image/png;base64"
    assert (decode(b64decode(encoded)) == pixels_HWC).all()


@pytest.mark.parametrize("count", [1, 200, 1_040])
def test_any_number_of_noisy_pictures_stays_below_four_megabytes(count):
    side_px = side_for(count)
    noise = np.random.default_rng(1).integers(0, 256, (side_px, side_px, 3), np.uint8)
    assert count * len(data_uri(noise)) < 4_000_000
    assert side_px >= 24


def test_pictures_come_in_the_order_asked_for_and_say_why_one_is_missing():
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field("photo"), pa.field("source", pa.list_(pa.string()))])
    data = [encode_png(np.full((4, 4, 1), row, np.uint8)) for row in range(6)]
    data[1], data[2] = b"no image", None
    table = MemoryTable(pa.table({"sample_id": list("abcdef"), "photo": data, "source": [["x.png", "y.png"]] * 6}, schema=schema))
    assert image_column(schema) == "photo"
    shown = pictures(table, [5, 1, 2, 0, 3], 24)
    assert [picture.sample_id for picture in shown] == list("fbcad")
    assert [bool(picture.uri) for picture in shown] == [True, False, False, True, True]
    assert shown[1].note.startswith("not an image") and shown[2].note == "no image"
    assert shown[0].source == "x.png, y.png"
