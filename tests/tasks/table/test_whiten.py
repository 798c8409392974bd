"""table.whiten: pixels as the whitening gives them, whatever the batch, and what can't be decoded leaves."""

import json

import numpy as np
import pyarrow as pa
import pytest

from stillroom.datasets import TorchSplit
from stillroom.errors import InputError
from stillroom.tables import MemoryTable
from tasks.nets.samples import load_images
from tasks.nets.whitening import load_whitening
from tasks.table.whiten import WhitenParams, whiten
from tests.tasks.distill.distilling import digits
from tests.tasks.train.test_zca import fitted

SIZE = WhitenParams(side_px=8, channels=1)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return whiten.setup({"whitening": fitted(tmp_path_factory.mktemp("zca"), digits(range(300)))}, SIZE)


def batch(rows: range) -> pa.RecordBatch:
    (made,) = digits(rows).table.select(["sample_id", "image"]).combine_chunks().to_batches()
    return made


def pixels(rows) -> np.ndarray:
    return np.array(rows.batch["pixels"].to_pylist(), np.float32)


def test_pixels_are_the_whitening_of_the_image_and_training_says_so(state, tmp_path):
    rows = whiten(batch(range(40)), SIZE, state)
    expected = state.whitening.apply(np.asarray(load_images(digits(range(40)), tmp_path)))
    assert np.array_equal(pixels(rows), expected.reshape(40, -1))
    assert set(rows.batch["training"].to_pylist()) == {state.told}
    assert json.loads(state.told) == {"mean": state.whitening.mean, "std": state.whitening.std, "zca": state.whitening.model_id}


def test_a_trainer_reads_them_as_it_reads_a_distilled_set(state):
    rows, images = whiten(batch(range(5)), SIZE, state).batch, digits(range(5)).table
    split = TorchSplit(
        MemoryTable(images.append_column(rows.schema.field("pixels"), rows["pixels"]).append_column("training", rows["training"])), pixels="normalised"
    )
    assert split.training["zca"] == state.whitening.model_id
    assert np.array_equal(split[3]["image"].numpy().ravel(), pixels(whiten(batch(range(5)), SIZE, state))[3])


def test_a_row_is_the_same_in_any_batch(state):
    whole = pixels(whiten(batch(range(300)), SIZE, state))
    parts = [pixels(whiten(batch(range(start, start + 60)), SIZE, state)) for start in range(0, 300, 60)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_image_that_cannot_be_decoded_is_rejected(state):
    broken = batch(range(3)).set_column(1, "image", pa.array([b"no image", *batch(range(1, 3))["image"].to_pylist()]))
    rows = whiten(broken, SIZE, state)
    assert rows.rejected.to_pylist()[0] and rows.rejected.to_pylist()[1:] == [None, None]
    assert np.array_equal(pixels(rows)[1:], pixels(whiten(batch(range(1, 3)), SIZE, state)))


def test_another_size_than_the_whitenings_is_refused(tmp_path):
    models = fitted(tmp_path, digits(range(30)))
    with pytest.raises(InputError, match="was fitted with side_px 8 and channels 1, not 16 and 1; write the same here"):
        whiten.setup({"whitening": models}, WhitenParams(side_px=16, channels=1))
    assert load_whitening(models).side_px == 8
