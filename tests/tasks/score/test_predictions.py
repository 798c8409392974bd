"""score.predictions against softmaxes taken by hand, and a row's independence of its unit."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.draws import Draw
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.models import folds_of, load_classifiers, model_batch
from tasks.score.predictions import PredictionsParams, predictions
from tests.tasks.score.test_embed import PIXELS, ensemble, samples


def said(scratch, start: int = 0, stop: int = 23, batch: int = 8, models: MemoryTable | None = None, judge: str = "all") -> pa.Table:
    torch.set_num_threads(1)
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(0, "score.predictions"))
    inputs = {"samples": samples(), "model": models or ensemble()}
    return pa.Table.from_batches(predictions(Unit("rows", start, stop), inputs, PredictionsParams(batch=batch, judge=judge), work))


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


def test_out_of_fold_each_row_is_answered_by_the_model_that_left_it_out(tmp_path):
    rows = ensemble().table.to_pylist()[:2]
    parted = [row | {"saw": json.dumps({"left_out": {"fold": fold, "folds": 2, "seed": 1}})} for fold, row in enumerate(rows)]
    models = MemoryTable(pa.Table.from_batches([model_batch(parted)]))
    found = said(tmp_path, models=models, judge="unseen")
    fold_N = folds_of(found["sample_id"].to_pylist(), 2, 1)
    answers = np.stack([member.probs(PIXELS, 8) for member in load_classifiers(models, "cpu")])
    assert 0 < fold_N.sum() < len(fold_N)
    assert found["confidence"].to_numpy() == pytest.approx(answers[fold_N, np.arange(len(fold_N))].max(axis=1), abs=1e-6)
