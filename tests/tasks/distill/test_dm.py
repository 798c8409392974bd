"""distill.dm: the loss and its gradient by hand, better images than it starts from, and the same bits after a stop."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.draws import Draw
from stillroom.errors import InputError
from tasks.distill.dm import dm
from tasks.nets.samples import load_labelled
from tasks.nets.training import normalise, seeded_net
from tests.tasks.distill.distilling import Stopped, digits, distil

FAST = {"side_px": 8, "channels": 1, "net": "mlp:64", "iterations": 6, "batch_size": 50, "check_every": 3, "check_epochs": 20, "check_nets": 1}


def distilled(scratch: Path, saved: dict | None = None, stop_at: int | None = None, real: range = range(400), **params) -> tuple[pa.Table, dict]:
    inputs = {"samples": digits(range(10)), "real": digits(real), "tune": digits(range(600, 900))}
    return distil(dm, inputs, FAST | params, scratch, saved, stop_at)


def test_the_first_loss_and_the_first_step_by_hand(tmp_path):
    """All real images, no augmentation: the classes' mean features, and Adam's first step, which is the gradient's sign."""
    rows, metrics = distilled(tmp_path, iterations=1, batch_size=1000, augment=[], image_learning_rate=0.01)
    (tmp_path / "again").mkdir()
    real = load_labelled(digits(range(400)), tmp_path / "again")
    net = seeded_net("mlp:64", "net/0", Draw(7, "distill.dm"), **real.shape)
    everything = normalise(torch.from_numpy(np.array(real.pixels_NCSS)), real.mean, real.std)
    images = everything[:10].clone().requires_grad_()
    losses = [
        (net.features(images[label : label + 1]).mean(0) - net.features(everything[real.labels_N == label]).mean(0)).square().sum() for label in range(10)
    ]
    loss = torch.stack(losses).sum()
    assert metrics["matching_loss"] == pytest.approx(loss.item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, images)
    moved = torch.from_numpy(np.array(rows["pixels"].to_pylist(), np.float32)).view(10, 1, 8, 8) - everything[:10]
    clear = gradient.abs() > 1e-4
    assert torch.allclose(moved[clear], -0.01 * gradient[clear].sign(), atol=1e-5)


def test_nothing_is_left_to_match_when_the_images_are_the_real_ones(tmp_path):
    _, metrics = distilled(tmp_path, iterations=1, real=range(10), augment=["rotate"])
    assert metrics["matching_loss"] == pytest.approx(0, abs=1e-8)


def test_what_it_gives_trains_better_nets_than_what_it_started_from(tmp_path):
    def accuracy(iterations: int) -> float:
        (tmp_path / str(iterations)).mkdir()
        params = {"check_every": 50, "check_epochs": 200, "check_nets": 2, "augment": [], "learning_rate": 0.05}
        return distilled(tmp_path / str(iterations), iterations=iterations, **params)[1]["validation_accuracy"]

    assert accuracy(200) > accuracy(1) + 0.05


def test_a_stopped_distillation_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.distill.dm.SAVE_EVERY", 2)
    (tmp_path / "whole").mkdir(), (tmp_path / "part").mkdir()
    whole = distilled(tmp_path / "whole")
    saved: dict[str, bytes] = {}
    for stop_at in (1, 3, 5):
        with pytest.raises(Stopped):
            distilled(tmp_path / "part", saved, stop_at)
    again = distilled(tmp_path / "part", saved)
    assert again[0].equals(whole[0])
    assert again[1] == whole[1]


def test_rows_say_how_to_train_on_them(tmp_path):
    rows, _ = distilled(tmp_path, augment=["shift", "flip"], learning_rate=0.03)
    told = json.loads(rows["training"][0].as_py())
    assert (told["augment"], told["learning_rate"], told["labels"], told["net"]) == (["shift", "flip"], 0.03, "hard", "mlp:64")
    assert "soft_label" not in rows.column_names


def test_a_class_without_real_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="class 9 has no image"):
        distilled(tmp_path, real=range(9))
