"""train.class_diffusion: resumes to the same bits, learns, and says what it was trained on."""

import json

import numpy as np
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.diffusion import load_unet, make_scheduler
from tasks.train.class_diffusion import ClassDiffusionParams, class_diffusion

TINY = {"width": 8, "batch_size": 8, "learning_rate": 5e-3}


def bars(side_px: int = 8) -> MemoryTable:
    """24 images of two classes: a bright row, or a bright column."""
    images, labels = [], []
    for row in range(24):
        pixels = np.zeros((side_px, side_px, 1), np.uint8)
        pixels[(row % side_px, slice(None)) if row % 2 else (slice(None), row % side_px)] = 255
        images.append(encode_png(pixels))
        labels.append(row % 2)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["column", "row"])])
    return MemoryTable(pa.table([pa.array([f"{row:02}" for row in range(24)]), images, labels], schema=schema))


def work(tmp_path, saved: dict | None = None) -> Work:
    return Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "train.class_diffusion"), saved={} if saved is None else saved)


def train(params: dict, unit_work: Work, samples: MemoryTable | None = None) -> dict:
    (batch,) = class_diffusion(Unit("model"), {"samples": samples or bars()}, ClassDiffusionParams(**TINY | params), unit_work)
    return batch.to_pylist()[0]


class Stopped(Exception):
    """The process is gone."""


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.train.class_diffusion.CHECKPOINT_STEPS", 2)
    whole = train({"steps": 7}, work(tmp_path))
    saved: dict[str, bytes] = {}

    def stop_at_five(done: float, total: float) -> None:
        if done == 5:
            raise Stopped

    stopped = work(tmp_path, saved)
    stopped.report = stop_at_five
    with pytest.raises(Stopped):
        train({"steps": 7}, stopped)
    steps: list[float] = []
    resumed = work(tmp_path, saved)
    resumed.report = lambda done, total: steps.append(done)
    assert train({"steps": 7}, resumed) == whole
    assert steps == [5, 6, 7]


def test_nothing_depends_on_torchs_global_generator(tmp_path):
    import torch

    torch.manual_seed(1)
    first = train({"steps": 2}, work(tmp_path))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert train({"steps": 2}, work(tmp_path)) == first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_falls(tmp_path):
    def loss(steps: int) -> float:
        return json.loads(train({"steps": steps, "width": 16}, work(tmp_path))["metrics"])["loss"]

    assert loss(50) < 0.8 * loss(3)


@pytest.mark.parametrize(("schedule", "predicts"), [("linear", "noise"), ("cosine", "velocity")])
def test_the_row_is_enough_to_load_the_net(tmp_path, schedule, predicts):
    row = train({"steps": 1, "schedule": schedule, "predicts": predicts}, work(tmp_path))
    config = json.loads(row["config"])
    assert load_unet(config, row["weights"], "cpu").config.num_class_embeds == 3
    assert make_scheduler(config).config.prediction_type == {"noise": "epsilon", "velocity": "v_prediction"}[predicts]
    assert config["label_names"] == ["column", "row"]
    assert json.loads(row["saw"])["rows"] == 24


def test_a_side_that_cannot_be_halved_is_trained_on_a_canvas(tmp_path):
    row = train({"steps": 1}, work(tmp_path), bars(side_px=9))
    config = json.loads(row["config"])
    assert config["side_px"] == 9
    assert load_unet(config, row["weights"], "cpu").config.sample_size == 10


def test_divergence_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="the loss is nan after step 3; a lower learning_rate may help"):
        train({"steps": 3, "learning_rate": 1e30}, work(tmp_path))
