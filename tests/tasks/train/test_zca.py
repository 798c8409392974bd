"""train.zca: one model, which its stage's consumers read back."""

import json

import numpy as np
import pyarrow as pa
import pytest

from stillroom.errors import InputError
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.models import load_classifiers
from tasks.nets.samples import load_images
from tasks.nets.training import channel_stats
from tasks.nets.whitening import Whitening, fit_zca, load_whitening
from tasks.train.zca import ZcaParams, zca
from tests.tasks.distill.distilling import digits


def fitted(scratch, samples: MemoryTable, **params) -> MemoryTable:
    asked = ZcaParams(**params)
    (unit,) = zca.units(asked)
    return MemoryTable(pa.Table.from_batches(list(zca(unit, {"samples": samples}, asked, Work("cpu", 1, scratch, None)))))


def test_what_it_stores_whitens_as_what_was_fitted(tmp_path):
    samples = digits(range(300))
    pixels = load_images(samples, tmp_path, name="pixels")
    mean, std = channel_stats(pixels)
    read = load_whitening(fitted(tmp_path, samples, epsilon=0.5))
    assert (read.mean, read.std, read.side_px, read.channels) == (mean, std, 8, 1)
    expected = Whitening("", mean, std, 8, 1, *fit_zca(pixels, mean, std, 0.5)).apply(pixels)
    assert np.abs(read.apply(pixels) - expected).max() < 1e-5  # it is stored in float32


def test_its_row_says_what_it_saw(tmp_path):
    (row,) = fitted(tmp_path, digits(range(30))).table.to_pylist()
    assert json.loads(row["config"])["epsilon"] == 0.1 and json.loads(row["saw"])["rows"] == 30
    assert row["model_id"] != fitted(tmp_path, digits(range(31))).table["model_id"][0].as_py()


def test_it_is_no_classifier(tmp_path):
    with pytest.raises(InputError, match="is made for the task 'whiten', a classifier is needed"):
        load_classifiers(fitted(tmp_path, digits(range(30))), "cpu")


def test_images_too_large_are_refused(tmp_path):
    large = MemoryTable(pa.table({"sample_id": ["a"], "image": [encode_png(np.zeros((128, 128, 1), np.uint8))]}))
    with pytest.raises(InputError, match="have 16,384 numbers each, whitening takes the square of that; give a side_px of 64 or less"):
        list(zca(Unit("zca"), {"samples": large}, ZcaParams(), Work("cpu", 1, tmp_path, None)))
