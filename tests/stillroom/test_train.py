"""Losses against torch's own, weights that count for nothing, and a loop that goes on where it was."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.streams import Stream, stream
from stillroom.tables import MemoryTable
from stillroom.train import batch_loss, fit, hard_cross_entropy, kl_divergence, load_checkpoint, save_checkpoint, soft_cross_entropy

LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0], [0.0, 3.0, 0.0]])
SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2, 1])


def test_losses_are_those_of_torch():
    assert soft_cross_entropy(LOGITS, SOFT).item() == pytest.approx(functional.cross_entropy(LOGITS, SOFT).item())
    assert hard_cross_entropy(LOGITS, LABELS, smoothing=0.1).item() == pytest.approx(functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1).item())
    at_3 = functional.kl_div(functional.log_softmax(LOGITS / 3, dim=1), SOFT, reduction="batchmean") * 9
    assert kl_divergence(LOGITS, SOFT, temperature=3).item() == pytest.approx(at_3.item())
    assert kl_divergence(SOFT.clamp(min=1e-30).log(), SOFT).item() == pytest.approx(0, abs=1e-6)


def test_a_row_of_weight_0_counts_for_nothing():
    weight = torch.tensor([1.0, 1.0, 0.0])
    for loss, labels in ((soft_cross_entropy, SOFT), (kl_divergence, SOFT), (hard_cross_entropy, LABELS)):
        assert loss(LOGITS, labels, weight).item() == pytest.approx(loss(LOGITS[:2], labels[:2]).item())
    logits = LOGITS.clone().requires_grad_()
    soft_cross_entropy(logits, SOFT, torch.zeros(3)).backward()
    assert (logits.grad == 0).all()


def test_a_batch_is_learnt_by_the_labels_that_it_has():
    batch = {"label": LABELS, "weight": torch.ones(3)}
    assert batch_loss(LOGITS, batch) == hard_cross_entropy(LOGITS, LABELS)
    soft = batch_loss(LOGITS, batch | {"soft_label": SOFT}, temperature=2)
    assert soft == soft_cross_entropy(LOGITS, SOFT, temperature=2)
    both = batch_loss(LOGITS, batch | {"soft_label": SOFT}, hard=0.25)
    assert both.item() == pytest.approx(0.25 * hard_cross_entropy(LOGITS, LABELS).item() + 0.75 * soft_cross_entropy(LOGITS, SOFT).item())


def levels() -> Stream:
    """Grey squares, dark ones of class 0 and light ones of class 1."""
    images = [encode_png(np.full((2, 2, 1), 60 + 90 * (row % 2) + row, np.uint8)) for row in range(50)]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["dark", "light"])])
    return stream(
        MemoryTable(pa.table([[f"s{row}" for row in range(50)], images, [row % 2 for row in range(50)]], schema=schema)), batch_size=8, micro_batches=2
    )


def net_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


def test_a_net_learns():
    losses = fit(*net_and_optimizer(), levels(), epochs=8)
    assert len(losses) == 8 and losses[-1] < 0.5 * losses[0]


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path):
    whole, optimizer = net_and_optimizer()
    fit(whole, optimizer, levels(), epochs=3)
    file = tmp_path / "run.pt"

    class Stopped(Exception):
        pass

    for stop in (5, 11):  # forward passes, in the middle of an epoch and of a step
        net, optimizer = net_and_optimizer()
        seen = iter(range(stop))

        def stopping(image, seen=seen):
            if next(seen, None) is None:
                raise Stopped
            return image

        with pytest.raises(Stopped):
            fit(net, optimizer, levels(), epochs=3, checkpoint=file, every_steps=1, augment=stopping)
    net, optimizer = net_and_optimizer()
    fit(net, optimizer, levels(), epochs=3, checkpoint=file)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), whole.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_checkpoint_has_net_optimizer_and_stream(tmp_path):
    net, optimizer = net_and_optimizer()
    batches = levels()
    next(iter(batches))
    save_checkpoint(tmp_path / "run.pt", net, optimizer, batches)
    resumed = levels()
    load_checkpoint(tmp_path / "run.pt", net, optimizer, resumed)
    assert resumed.state_dict() == batches.state_dict() and resumed.state_dict()["position"] == 4
