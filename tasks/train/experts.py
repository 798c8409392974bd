"""train.experts: trainings whose way is kept, epoch by epoch, for trajectory matching."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import InputError
from stillroom.operators import Input, Params, Table, Unit, Work, train
from tasks.nets.dsa import DSA_OPS, DsaOp, apply_dsa, draw_dsa
from tasks.nets.models import ids_seen, model_batch, model_row
from tasks.nets.samples import Labelled, load_labelled
from tasks.nets.training import index_batches, normalise, seeded_net
from tasks.nets.whitening import load_whitening
from tasks.nets.zoo import NetName, refuse_statistics

if TYPE_CHECKING:
    from torch import nn

# B = images of a batch


class ExpertsParams(Params):
    """Parameters of `train.experts`."""

    net: NetName = Field(default="convnet3:32", description="A net without running statistics: convnet3 or mlp, each with a width, as in convnet3:128.")
    experts: int = Field(default=10, ge=1, description="Trainings, each from its own initial weights and in its own order.")
    epochs: int = Field(default=10, ge=1, description="Epochs of each: the last start that matching draws, and the epochs that it matches, are enough.")
    epoch_samples: int | None = Field(
        default=None,
        ge=1,
        description="Samples that count as an epoch, here and in distill.tesla; left out, all. A pass over a large set is too far for a student of few steps.",
    )
    first_epoch: int = Field(default=0, ge=0, description="The first epoch whose weights are kept; 0: the initial ones too.")
    batch_size: int = Field(default=256, ge=1, description="Images a step.")
    learning_rate: float = Field(default=0.01, gt=0, description="Of plain SGD: no momentum, decay or schedule, since a student must be able to imitate it.")
    augment: tuple[DsaOp, ...] = Field(default=(), description=f"Of {', '.join(DSA_OPS)}: one drawn a step. Matching and evaluation then do alike.")
    side_px: int | None = Field(default=None, ge=1, description="Resize images to this square; left out, all must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images must agree.")
    torch_threads: int = Field(default=1, ge=1, description="Threads a training; part of what its weights depend on.")

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.first_epoch > self.epochs:
            raise ValueError(f"first_epoch: {self.first_epoch} is after the last of {self.epochs} epochs")
        return self


def _units(params: ExpertsParams) -> list[Unit]:
    return [Unit(f"expert-{expert}", value=expert, threads=params.torch_threads) for expert in range(params.experts)]


@train(version=1, units=_units, inputs={"samples": Input(requires=["image", "label"]), "whitening": Input(kind="model", optional=True)})
def experts(unit: Unit, inputs: Mapping[str, Table], params: ExpertsParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Train nets by plain SGD and keep their weights after each epoch, a row each.

    What trajectory matching imitates (Cazenavette et al., arXiv 2203.11932): the ways matter, not the
    accuracy they end with. With a `whitening` (train.zca) images are whitened before, and what is distilled
    from these experts is given the same one. A stopped expert goes on from its last whole epoch, to the same bits.

    Args:
        unit: one expert, its number in `value`.

    Returns:
        Rows of MODEL_COLUMNS in order of epochs: `seed` is the expert's number, `config` holds what a classifier's does
        and `expert`: {epoch, learning_rate, steps of an epoch, augment}; `metrics` the mean `loss` of the epoch.

    Raises:
        InputError: samples that can't be trained on, or a loss that isn't finite.
    """
    from safetensors.torch import load

    whitening, expert = load_whitening(inputs.get("whitening")), unit.value
    samples = load_labelled(inputs["samples"], work.scratch, side_px=params.side_px, channels=params.channels, whitening=whitening)
    net = seeded_net(params.net, f"init/{expert}", work.draw, **samples.shape).to(work.device)
    refuse_statistics(net, params.net)
    steps, saw = -(-(params.epoch_samples or len(samples.labels_N)) // params.batch_size), ids_seen(samples.sample_ids)
    way = {"learning_rate": params.learning_rate, "steps": steps, "batch_size": params.batch_size, "augment": list(params.augment)}
    for epoch in range(params.epochs + 1):
        if (kept := work.load(f"epoch-{epoch}")) is not None:
            tensors = load(kept)
            loss = tensors.pop("loss").item()
            net.load_state_dict(tensors)
        else:
            loss = _train_epoch(net, samples, expert, range((epoch - 1) * steps, epoch * steps), params, work) if epoch else 0.0
            work.save(f"epoch-{epoch}", _packed(net, loss))
        if epoch >= params.first_epoch:
            config = {**samples.config(params.net), "expert": {"epoch": epoch, **way}}
            yield model_batch([model_row(net, config, expert, {"loss": round(loss, 6)} if epoch else {}, saw)])
        work.progress(epoch, params.epochs)


def _train_epoch(net: "nn.Module", samples: Labelled, expert: int, steps: range, params: ExpertsParams, work: Work) -> float:
    """Train in place; the mean loss of these steps."""
    import torch
    from torch.nn import functional

    net.train()
    order = index_batches(len(samples.labels_N), params.batch_size, f"order/{expert}", work.draw)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=params.learning_rate), []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step in steps:
            images_BCSS, labels_B = (tensor.to(work.device) for tensor in samples.at(order(step)))
            images_BCSS = normalise(images_BCSS, samples.mean, samples.std)
            images_BCSS = apply_dsa(images_BCSS, draw_dsa(params.augment, work.draw.integer(f"augment/{expert}/{step}"), len(images_BCSS)))
            loss = functional.cross_entropy(net(images_BCSS), labels_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    mean_loss = torch.stack(losses).mean().item()
    if not math.isfinite(mean_loss):
        raise InputError("training", f"the loss of expert {expert} is {mean_loss} by step {steps.stop}", "a lower learning_rate may help")
    return mean_loss


def _packed(net: "nn.Module", loss: float) -> bytes:
    """All that a later epoch goes on from: plain SGD has no state of its own."""
    import torch
    from safetensors.torch import save

    # `save` on a CPU would otherwise be given the live tensors, which the next epoch changes.
    weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    return save(weights | {"loss": torch.tensor(loss, dtype=torch.float64)})
