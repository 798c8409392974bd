"""train.experts: a row an epoch, plain SGD to the digit, and a stopped expert goes on to the same bits."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch.nn import functional

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.nets.models import load_classifiers, measured_on
from tasks.nets.samples import load_labelled
from tasks.nets.training import index_batches, normalise, seeded_net
from tasks.train.experts import ExpertsParams, experts

FAST = {"net": "mlp:16", "experts": 1, "epochs": 3, "batch_size": 32, "learning_rate": 0.1}


def digits(rows: int = 100) -> MemoryTable:
    from sklearn.datasets import load_digits

    pixels_NHW, labels = load_digits(return_X_y=True)
    images = [encode_png((image.reshape(8, 8, 1) * 15).astype(np.uint8)) for image in pixels_NHW[:rows]]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field([str(digit) for digit in range(10)])])
    return MemoryTable(pa.table([[f"d{row}" for row in range(rows)], images, labels[:rows]], schema=schema))


def work(scratch: Path, saved: dict | None = None) -> Work:
    torch.set_num_threads(1)
    return Work(device="cpu", threads=1, scratch=scratch, draw=Draw(7, "train.experts"), saved={} if saved is None else saved)


def trained(scratch: Path, samples: MemoryTable, unit_work: Work | None = None, **params) -> list[dict]:
    asked = ExpertsParams(**FAST | params)
    batches = [batch for unit in experts.units(asked) for batch in experts(unit, {"samples": samples}, asked, unit_work or work(scratch))]
    return pa.Table.from_batches(batches).to_pylist()


def test_a_row_an_epoch_of_each_expert_and_no_two_alike(tmp_path):
    rows = trained(tmp_path, digits(), experts=2)
    assert [(row["seed"], json.loads(row["config"])["expert"]["epoch"]) for row in rows] == [(expert, epoch) for expert in range(2) for epoch in range(4)]
    assert len({row["weights"] for row in rows}) == 8  # also: no snapshot is the live net


def test_only_the_epochs_asked_for_are_kept_and_they_are_the_same(tmp_path):
    assert trained(tmp_path, digits(), first_epoch=2) == trained(tmp_path, digits())[2:]


def test_an_epoch_is_plain_sgd_over_all_images(tmp_path):
    samples, draw = load_labelled(digits(), tmp_path), Draw(7, "train.experts")
    net = seeded_net("mlp:16", "init/0", draw, **samples.shape)
    order = index_batches(100, 32, "order/0", draw)
    for step in range(4):
        images_BCSS, labels_B = samples.at(order(step))
        loss = functional.cross_entropy(net(normalise(images_BCSS, samples.mean, samples.std)), labels_B)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.sub_(0.1 * gradient)
    (tmp_path / "again").mkdir()
    found = load(trained(tmp_path / "again", digits())[1]["weights"])
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in net.state_dict().items())


def test_a_shorter_epoch_keeps_the_same_way_more_often(tmp_path):
    """Four steps of 32 are a pass over 100 images: kept after each step, the fourth are the weights after the pass."""
    often, once = trained(tmp_path, digits(), epoch_samples=32, epochs=8), trained(tmp_path, digits(), epochs=2)
    assert [often[epoch]["weights"] for epoch in (0, 4, 8)] == [row["weights"] for row in once]
    assert json.loads(often[1]["config"])["expert"]["steps"] == 1


@pytest.mark.parametrize("augment", [(), ("shift", "rotate")])
def test_a_stopped_expert_goes_on_to_the_same_bits(tmp_path, augment):
    whole = trained(tmp_path, digits(), augment=augment)
    saved: dict[str, bytes] = {}
    asked = ExpertsParams(**FAST | {"augment": augment})
    running = experts(experts.units(asked)[0], {"samples": digits()}, asked, work(tmp_path, saved))
    next(running), next(running)  # the initial weights, and those after an epoch
    running.close()
    assert len(saved) == 2
    assert trained(tmp_path, digits(), work(tmp_path, saved), augment=augment) == whole


def test_an_expert_is_a_classifier_that_learns(tmp_path):
    rows = MemoryTable(pa.Table.from_pylist(trained(tmp_path, digits(400), epochs=20)))
    members = load_classifiers(rows, "cpu")
    first, last = (measured_on([members[place]], digits(400), tmp_path, 256)["validation_accuracy"] for place in (0, -1))
    assert last > 0.8 > first


def test_what_cannot_be_matched_is_refused(tmp_path):
    with pytest.raises(InputError, match="running statistics"):
        trained(tmp_path, digits(), net="cnn")
    with pytest.raises(InputError, match="the loss of expert 0 is nan by step 4; a lower learning_rate may help"):
        trained(tmp_path, digits(), learning_rate=1e30)
    with pytest.raises(ValidationError, match="first_epoch: 4 is after the last of 3 epochs"):
        ExpertsParams(**FAST | {"first_epoch": 4})
