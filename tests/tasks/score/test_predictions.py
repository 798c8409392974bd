"""score.predictions against softmaxes taken by hand, and a row's independence of its unit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.draws import Draw
from stillroom.operators import Unit, Work
from tasks.nets.models import load_classifiers
from tasks.score.predictions import PredictionsParams, predictions
from tests.tasks.score.test_embed import PIXELS, ensemble, samples


def said(scratch, start: int = 0, stop: int = 23, batch: int = 8) -> pa.Table:
    torch.set_num_threads(1)
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(0, "score.predictions"))
    inputs = {"samples": samples(), "model": ensemble()}
    return pa.Table.from_batches(predictions(Unit("rows", start, stop), inputs, PredictionsParams(batch=batch), work))


def test_scores_are_those_of_the_mean_softmax(tmp_path):
    probs = np.mean([member.probs(PIXELS, 8) for member in load_classifiers(ensemble(), "cpu")], axis=0)
    found = said(tmp_path)
    assert found["predicted"].to_pylist() == ["abc"[place] for place in probs.argmax(axis=1)]
    for row, p in enumerate(np.sort(probs.astype(np.float64), axis=1)[:, ::-1]):
        assert found["confidence"][row].as_py() == pytest.approx(p[0], abs=1e-6)
        assert found["margin"][row].as_py() == pytest.approx(p[0] - p[1], abs=1e-6)
        assert found["entropy"][row].as_py() == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)


def test_a_row_does_not_depend_on_its_unit(tmp_path):
    whole, parts = said(tmp_path), pa.concat_tables([said(tmp_path, 0, 8), said(tmp_path, 8, 23)])
    assert whole.equals(parts)
    assert predictions.added(PredictionsParams(), {}).keys() == set(whole.column_names) - {"sample_id"}
