"""distill.dm: synthetic images whose features have the means that those of the real ones have, in nets fresh from their seed."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Input, Table, Unit, Work, source
from tasks.distill._synthetic import CheckParams, Start, distilled_fields, distilled_rows, load_start
from tasks.nets.dsa import DSA_OPS, DsaOp, apply_dsa, draw_dsa
from tasks.nets.samples import Labelled, load_labelled
from tasks.nets.training import normalise, seeded_net
from tasks.nets.whitening import load_whitening
from tasks.nets.zoo import NetName

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# N = synthetic images, B = real images of a class, C S S = image, K = classes, D = features

SAVE_EVERY = 50


class DmParams(CheckParams):
    """Parameters of `distill.dm`."""

    net: NetName = Field(default="convnet3:32", description="The net whose features are matched, untrained, as in convnet3:128.")
    iterations: int = Field(default=1000, ge=1, description="Updates of the images, a fresh net each.")
    batch_size: int = Field(default=128, ge=1, description="Real images of each class that an iteration looks at; all, where there are fewer.")
    augment: tuple[DsaOp, ...] = Field(default=DSA_OPS, description=f"Of {', '.join(DSA_OPS)}: one drawn an iteration. No flip where left and right matter.")
    image_learning_rate: float = Field(default=0.02, gt=0, description="Step of Adam on normalised pixels.")
    learning_rate: float = Field(default=0.01, gt=0, description="The rate at which nets are to be trained on the images.")
    torch_threads: int = Field(default=1, ge=1, description="Threads; part of what the images depend on.")


def _units(params: DmParams) -> list[Unit]:
    return [Unit("images", threads=params.torch_threads)]


def _adds(params: DmParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    return distilled_fields(params, schemas.get("samples"), soft=False)


@source(
    version=1,
    units=_units,
    adds=_adds,
    inputs={
        "samples": Input(requires=["image", "label"]),
        "real": Input(requires=["image", "label"]),
        "tune": Input(requires=["image", "label"], optional=True, trains=False),
        "whitening": Input(kind="model", optional=True),
    },
    random=True,
)
def dm(unit: Unit, inputs: Mapping[str, Table], params: DmParams, work: Work, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Distil cheaply: match the mean features of each class, in a net with new random weights each time.

    Distribution matching (Zhao and Bilen, arXiv 2110.04181): the loss is the sum over classes of
    ||mean f(A(real)) - mean f(A(synthetic))||^2, f the features of an untrained net, A one augmentation for both (DSA).
    No experts and no second derivatives: minutes where trajectory matching takes an hour, and less accurate.

    `samples` are the images to start from, and so the budget; `real` what they stand for; with a `whitening` (train.zca) all
    are whitened. All that is random is keyed by the iteration, so a stopped distillation goes on to the same bits.

    Returns:
        Rows as those of distill.tesla, with hard labels.

    Raises:
        InputError: a class of `samples` has no real images, or an image can't be decoded.
    """
    import torch

    from tasks.distill._learning import Judge, State, adam_step, keep, resumed

    whitening = load_whitening(inputs.get("whitening"))
    real = load_labelled(inputs["real"], work.scratch, side_px=params.side_px, channels=params.channels, whitening=whitening)
    start = load_start(inputs["samples"], work.scratch, params, real.mean, real.std, whitening)
    if start.label_names != real.label_names:
        raise InputError("real", "has other labels than the samples", "take both from the same table")
    rows_K = [np.flatnonzero(real.labels_N == label) for label in range(len(real.label_names))]
    if short := [name for name, rows in zip(real.label_names, rows_K, strict=True) if not len(rows)]:
        raise InputError("real", f"class {short[0]} has no image", "take both from the same table")
    images_NCSS = start.images_NCSS.to(work.device)
    state: State = {"images": images_NCSS, "done": torch.zeros((), dtype=torch.int64), "updates": torch.zeros((), dtype=torch.int64)}
    state |= {f"images_{moment}": torch.zeros_like(images_NCSS) for moment in ("mean", "square")}
    state |= {"best_images": images_NCSS.clone(), "accuracy": torch.tensor(-1.0, dtype=torch.float64), "loss": torch.zeros((), dtype=torch.float64)}
    resumed(state, work)
    config = real.config(params.net)
    judge = Judge(config, params.augment, params, work, inputs["tune"], whitening) if "tune" in inputs else None
    targets_NK = torch.nn.functional.one_hot(torch.from_numpy(start.labels_N), len(real.label_names)).float().to(work.device)
    for iteration in range(int(state["done"]), params.iterations):
        net = seeded_net(params.net, f"net/{iteration}", work.draw, **real.shape).to(work.device)
        loss, gradient = _matched(net, state["images"], start, real, rows_K, iteration, params, work)
        state["updates"] += 1
        adam_step(state, "images", gradient, params.image_learning_rate)
        state["loss"].lerp_(torch.tensor(loss, dtype=torch.float64), 1 / min(100, int(state["updates"])))
        state["done"].fill_(iteration + 1)
        due = (iteration + 1) % params.check_every == 0 or iteration + 1 == params.iterations
        if due:
            accuracy = judge.accuracy(state["images"], targets_NK, params.learning_rate) if judge else 0.0
            if judge is None or accuracy > state["accuracy"]:
                state["accuracy"].fill_(accuracy)
                state["best_images"].copy_(state["images"])
        if due or (iteration + 1) % SAVE_EVERY == 0:
            keep(state, work)
        work.progress(iteration + 1, params.iterations)
    work.metrics["matching_loss"] = round(float(state["loss"]), 4)
    if judge:
        work.metrics["validation_accuracy"] = round(float(state["accuracy"]), 4)
    training = {"mean": real.mean, "std": real.std, "learning_rate": params.learning_rate, "augment": list(params.augment), "labels": "hard", "net": params.net}
    yield from distilled_rows(start, state["best_images"].cpu().numpy(), training, schema, work.metrics, whitening=whitening)


def _matched(
    net: "nn.Module", images_NCSS: "Tensor", start: Start, real: Labelled, rows_K: list[np.ndarray], iteration: int, params: DmParams, work: Work
) -> "tuple[float, torch.Tensor]":
    """Loss of an iteration, and its gradient by the images."""
    import torch

    from tasks.nets.networks import features_of

    images_NCSS = images_NCSS.detach().requires_grad_()
    total = images_NCSS.new_zeros(())
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for label, rows in enumerate(rows_K):
            key = f"{iteration}/{label}"
            drawn = draw_dsa(params.augment, work.draw.integer(f"augment/{key}"), 1)
            chosen = rows[np.argsort(work.draw.uniform([f"real/{key}"], len(rows))[0], kind="stable")[: params.batch_size]]
            real_BCSS, _ = real.at(chosen)
            with torch.no_grad():
                wanted_D = features_of(net, apply_dsa(normalise(real_BCSS.to(work.device), real.mean, real.std), drawn)).mean(0)
            own = torch.from_numpy(np.flatnonzero(start.labels_N == label)).to(work.device)
            total = total + (features_of(net, apply_dsa(images_NCSS[own], drawn)).mean(0) - wanted_D).square().sum()
    (gradient,) = torch.autograd.grad(total, images_NCSS)
    return total.item(), gradient
