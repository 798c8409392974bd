"""score.gradients against autograd, by the logits and by the last layer's weights."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.models import load_classifiers
from tasks.nets.training import normalise
from tasks.score.gradients import GradientsParams, gradients
from tests.tasks.score.test_embed import PIXELS, ensemble

LABELS = [row % 3 if row != 4 else None for row in range(23)]


def samples(names: str = "abc") -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(list(names))])
    return MemoryTable(pa.table([[f"s{row}" for row in range(23)], [encode_png(image.transpose(1, 2, 0)) for image in PIXELS], LABELS], schema=schema))


def found(scratch, start: int = 0, stop: int = 23, table: MemoryTable | None = None, **params: object) -> np.ndarray:
    torch.set_num_threads(1)
    asked, inputs = GradientsParams(batch=8, **params), {"samples": table or samples(), "model": ensemble()}
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(0, "score.gradients"))
    given = pa.Table.from_batches(gradients(Unit("rows", start, stop), inputs, asked, work))
    assert given.schema.field("gradient").type == gradients.added(asked, {"samples": inputs["samples"].schema})["gradient"].type
    return np.array(given["gradient"].to_pylist(), np.float32)


def test_they_are_the_gradients_that_autograd_finds(tmp_path):
    classifier = load_classifiers(ensemble(), "cpu")[0]
    by_logits, by_weights = [], []
    for pixels, label in zip(PIXELS, LABELS, strict=True):
        logits = classifier.net(normalise(torch.from_numpy(pixels[None]), [0.5], [0.5]))
        loss = cross_entropy(logits, torch.tensor([label or 0]))
        gradient, weights = torch.autograd.grad(loss, [logits, classifier.net.head.weight])
        by_logits.append(gradient[0].numpy())
        by_weights.append(weights.numpy().ravel())
    known = [row for row, label in enumerate(LABELS) if label is not None]
    assert np.allclose(found(tmp_path)[known], np.array(by_logits)[known], atol=1e-6)
    assert np.allclose(found(tmp_path, of="layer", features=8)[known], np.array(by_weights)[known], atol=1e-5)


def test_a_row_without_a_label_has_no_gradient_and_none_depends_on_its_unit(tmp_path):
    whole = found(tmp_path)
    assert np.isnan(whole).all(axis=1).nonzero()[0].tolist() == [4]
    assert np.array_equal(whole, np.concatenate([found(tmp_path, 0, 8), found(tmp_path, 8, 23)]), equal_nan=True)


def test_refuses(tmp_path):
    with pytest.raises(InputError, match="has no class 'd'"):
        found(tmp_path, table=samples("abd"))
    with pytest.raises(InputError, match="features: the model has 8, not 9; write features: 8"):
        found(tmp_path, of="layer", features=9)
    with pytest.raises(ValidationError, match="say it with of: layer, and only there"):
        GradientsParams(features=3)
    with pytest.raises(InputError, match="its classes have no names"):
        gradients.added(GradientsParams(), {"samples": pa.schema([("label", pa.int64())])})
