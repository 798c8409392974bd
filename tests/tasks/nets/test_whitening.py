"""ZCA whitening beside numpy's, and the way back."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.errors import InputError
from stillroom.operators import MODEL_COLUMNS
from stillroom.tables import MemoryTable
from tasks.nets.whitening import Whitening, fit_zca, load_whitening

# N = images, D = numbers of an image

MEAN, STD = [0.4], [0.2]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures of 4x4: neighbours say much the same."""
    rough = np.random.default_rng(seed).normal(size=(count, 1, 6, 6))
    smooth = sum(rough[..., y : y + 4, x : x + 4] for y in range(3) for x in range(3))
    return np.clip(100 + 20 * smooth, 0, 255).astype(np.uint8)


def whitening(epsilon: float = 0.1, pixels: np.ndarray | None = None) -> Whitening:
    return Whitening("id", MEAN, STD, 4, 1, *fit_zca(pictures(2000) if pixels is None else pixels, MEAN, STD, epsilon))


def flat(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - MEAN[0]) / STD[0]).reshape(len(pixels), -1)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_it_is_numpys_by_another_way(epsilon):
    values_ND = flat(pictures(2000))
    covariance_DD = np.cov(values_ND.T, bias=True)
    vectors_DD, spread_D, _ = np.linalg.svd(covariance_DD)  # of a symmetric matrix: its eigenvectors
    matrix_DD = vectors_DD @ np.diag((spread_D + epsilon) ** -0.5) @ vectors_DD.T
    expected_ND = (values_ND - values_ND.mean(0)) @ matrix_DD
    expected_ND /= expected_ND.std()
    found_ND = whitening(epsilon).apply(pictures(2000)).reshape(2000, -1)
    assert np.abs(found_ND - expected_ND).max() < 1e-5


def test_pixels_come_out_uncorrelated_and_of_variance_one():
    values_ND = whitening(1e-6).apply(pictures(2000)).reshape(2000, -1)
    assert np.abs(np.cov(values_ND.T) - np.eye(16)).max() < 1e-2
    assert np.abs(np.cov(flat(pictures(2000)).T)).max() > 0.3  # which they weren't


def test_undone_it_is_the_image_again():
    made, pixels = whitening(), pictures(50, seed=1)
    assert np.abs(made.undo(made.apply(pixels)).reshape(50, -1) - flat(pixels)).max() < 1e-5


def test_an_image_comes_out_alike_in_any_company(tmp_path):
    made, pixels = whitening(), pictures(600)
    whole = made.apply(pixels)
    assert np.array_equal(made.apply_to_file(pixels, tmp_path / "file"), whole)
    assert all(np.array_equal(made.apply(pixels[place : place + 1])[0], whole[place]) for place in (0, 255, 256, 599))


def test_pixels_that_never_change_are_left_at_zero():
    pixels = pictures(200)
    pixels[:, :, 0] = 7
    out = whitening(pixels=pixels).apply(pixels)
    assert np.isfinite(out).all() and np.abs(out[:, :, 0]).max() < 1e-5


def test_another_size_is_refused():
    with pytest.raises(InputError, match="was fitted on images of 1x4x4, these are 1x8x8; give side_px"):
        whitening().apply(np.zeros((1, 1, 8, 8), np.uint8))


@pytest.mark.parametrize(("rows", "task", "said"), [(2, "whiten", "has 2 models, one is needed"), (1, "classify", "is a model for the task 'classify'")])
def test_another_table_of_models_is_refused(rows, task, said):
    row = {"model_id": "m", "seed": 0, "config": json.dumps({"task": task}), "metrics": "{}", "saw": "{}", "weights": b""}
    schema = pa.schema([field if isinstance(field, pa.Field) else pa.field(name, field) for name, field in MODEL_COLUMNS.items()])
    with pytest.raises(InputError, match=said):
        load_whitening(MemoryTable(pa.Table.from_pylist([row] * rows, schema)))
    assert load_whitening(None) is None


def test_torchs_generator_is_left_alone():
    before = torch.random.get_rng_state()
    whitening()
    assert torch.equal(before, torch.random.get_rng_state())
