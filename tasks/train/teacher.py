"""train.teacher: train classifiers on labelled images, several seeds as an ensemble, each on all or all but a fold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.quantities import Fraction
from stillroom.errors import StageError
from stillroom.operators import Draw, Input, Params, Table, Unit, Work, train
from stillroom.tables import BaseTable
from stillroom.transforms import COUNTS, Transforms, transformed
from stillroom.views import ViewPolicy, draw_views, replay, view_contract
from tasks.nets.models import Classifier, folds_of, ids_seen, measured_on, model_batch, model_row, refuse_below
from tasks.nets.samples import Labelled, load_labelled, load_labels
from tasks.nets.training import fit, index_batches, progress_of, seeded_net
from tasks.nets.zoo import NetName

if TYPE_CHECKING:
    import torch

# B = samples of a batch, C = channels, S = side

Batches: TypeAlias = "Callable[[int], tuple[torch.Tensor, torch.Tensor]]"

NAME = "train.teacher"
MEASURE_BATCH = 256
PROGRESS_STEPS = 20


class Augment(Params):
    """How far each image is moved, anew in each epoch; the defaults suit digits."""

    shift_px: float = Field(default=0.5, ge=0, le=127, description="Largest shift along each axis, in pixels.")
    rotate_deg: float = Field(default=8.0, ge=0, le=180, description="Largest rotation to either side.")
    scale: float = Field(default=0.08, ge=0, le=0.5, description="Largest change of size: 0.08 draws factors from 0.92 to 1.08.")
    flip: bool = Field(default=False, description="Whether half of the images are mirrored; wrong for digits and letters.")

    def policy(self) -> ViewPolicy:
        """The views to draw from."""
        return ViewPolicy(kinds=("flip", "affine") if self.flip else ("affine",), shift_px=self.shift_px, rotate_deg=self.rotate_deg, scale=self.scale)


class TeacherParams(Params):
    """Parameters of `train.teacher`."""

    net: NetName = Field(default="cnn:32", description="A net: cnn, convnet3, mlp, resnet18 (each with a width, as in cnn:32), or timm/<name>.")
    steps: int = Field(default=1000, ge=1, description="Optimizer steps of each member.")
    batch_size: int = Field(default=64, ge=1, description="Images a step.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak of the one-cycle schedule.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's decoupled weight decay.")
    seeds: int = Field(default=1, ge=1, description="Members of the ensemble: each starts from its own weights and order.")
    folds: int | None = Field(
        default=None,
        ge=2,
        description="Parts that rows fall into by their ids: for each seed and part a member that doesn't see it, and may judge it (`judge: unseen`).",
    )
    augment: Augment | None = Field(default_factory=Augment, description="How images are moved while training; null trains on them as they are.")
    joint: Transforms | None = Field(
        default=None,
        exclude_if=lambda joint: joint is None,  # what was trained before there was this parameter keeps its fingerprint
        description="Learn class and transform as one label (SLA), each image in all 4 quarter_turns, or in all 6 of permutation (of its channels).",
    )
    side_px: int | None = Field(default=None, ge=1, description="Resize images to this square; left out, all must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images must agree.")
    floor: Fraction | None = Field(default=None, description="Refuse a member below this accuracy on `check_on`, as 95% or 0.95.")
    torch_threads: int = Field(default=1, ge=1, description="Threads a member; part of what its weights depend on.")


def _units(inputs: Mapping[str, Table], params: TeacherParams) -> list[Unit]:
    if params.floor is not None and "check_on" not in inputs:
        raise StageError(NAME, f"floor: {params.floor} needs rows to measure on", "give `check_on` a validation split")
    folds: Sequence[int | None] = [None] if params.folds is None else range(params.folds)
    return [
        Unit(f"seed-{seed}" + ("" if fold is None else f"-fold-{fold}"), value={"seed": seed, "fold": fold}, threads=params.torch_threads)
        for seed in range(params.seeds)
        for fold in folds
    ]


@train(
    version=1,
    units=_units,
    inputs={
        "samples": Input(requires=["image", "label"], trains=True),
        "check_on": Input(requires=["image", "label"], optional=True, trains=False),
    },
)
def teacher(unit: Unit, inputs: Mapping[str, Table], params: TeacherParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Train a classifier, or an ensemble of several seeds, and measure it on validation.

    AdamW under a one-cycle learning rate, cross-entropy, images normalised by the training set's
    channel means and deviations. In each epoch an image is moved anew by the kernels of
    `stillroom.replay`, by numbers keyed by (seed, operator, sample id, member, epoch). The last
    weights are kept: `check_on` is measured and chooses nothing. With `folds`, a member is trained on all
    rows but those of its fold, and measured on these as well.

    With `joint`, each step shows each of its images in all M transforms, and the net has K * M outputs, M y + t for class y in
    transform t (Lee, Hwang, Shin: arXiv 1910.05872). What it says of an image is the softmax of the mean logits over transforms.

    Args:
        unit: one member, its seed and fold in `value`.

    Returns:
        A row of MODEL_COLUMNS; `metrics` has `validation_accuracy` where `check_on` is given, and with `folds`
        `unseen_accuracy`, that on the rows left out. With `joint`, `single_accuracy` is that of the image as it is, on `check_on`.

    Raises:
        StageError: a member's accuracy is below `floor`; channels are to be permuted, and images have one, or three alike.
        InputError: samples that can't be trained on, or a loss that isn't finite.
    """
    seed, fold = unit.value["seed"], unit.value["fold"]
    member = f"{seed}" if fold is None else f"{seed}/{fold}"
    parted = None if params.folds is None else {"fold": fold, "folds": params.folds, "seed": work.draw.seed}
    seen, left_out = _parted(inputs["samples"], parted)
    samples = load_labelled(seen, work.scratch, side_px=params.side_px, channels=params.channels)
    # Without names, a fold's rows may lack the last class.
    samples = replace(samples, label_names=load_labels(inputs["samples"])[1])
    if params.joint == "permutation":
        _refuse_grey(samples)
    transforms = 1 if params.joint is None else COUNTS[params.joint]
    outputs = samples.shape["num_classes"] * transforms
    net = seeded_net(params.net, f"init/{member}", work.draw, **samples.shape | {"num_classes": outputs})

    fit(
        net,
        _jointly(_batches(samples, params, member, work.draw), params.joint),
        steps=params.steps,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        device=work.device,
        on_step=progress_of(work, PROGRESS_STEPS),
        checkpoint=work,
        mean=samples.mean,
        std=samples.std,
    )
    config = samples.config(params.net) | ({"joint": params.joint} if params.joint else {})
    trained = Classifier(net, config, unit.name, work.device)
    metrics: dict[str, Any] = {}
    if left_out is not None and left_out.rows:
        found = measured_on([trained], left_out, work.scratch, MEASURE_BATCH)
        metrics |= {"unseen_accuracy": found["validation_accuracy"], "unseen_rows": found["validation_rows"]}
        work.metrics[f"unseen_accuracy.{unit.name}"] = metrics["unseen_accuracy"]
    if "check_on" in inputs:
        metrics |= measured_on([trained], inputs["check_on"], work.scratch, MEASURE_BATCH)
        work.metrics[f"validation_accuracy.{unit.name}"] = metrics["validation_accuracy"]
        if params.joint:
            alone = measured_on([trained.single()], inputs["check_on"], work.scratch, MEASURE_BATCH)
            metrics["single_accuracy"] = work.metrics[f"single_accuracy.{unit.name}"] = alone["validation_accuracy"]
        refuse_below(params.floor, metrics, NAME)
    yield model_batch([model_row(net, config, seed, metrics, ids_seen(samples.sample_ids, parted))])


class _Rows(BaseTable):
    """Some rows of a table."""

    def __init__(self, table: Table, positions: np.ndarray) -> None:
        self.table, self.positions, self.schema, self.rows = table, positions, table.schema, len(positions)

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        return self.table.take(self.positions[np.asarray(rows, np.int64)], columns)


def _parted(table: Table, left_out: Mapping[str, int] | None) -> tuple[Table, Table | None]:
    """What a member is trained on, and the fold that it leaves out, if it does."""
    if left_out is None:
        return table, None
    fold_N = folds_of(table.frame(["sample_id"])["sample_id"].to_list(), left_out["folds"], left_out["seed"])
    return _Rows(table, np.flatnonzero(fold_N != left_out["fold"])), _Rows(table, np.flatnonzero(fold_N == left_out["fold"]))


def _refuse_grey(samples: Labelled) -> None:
    """Refuse images whose channels can't be told apart: the first ones are looked at."""
    looked_BCSS = samples.pixels_NCSS[:MEASURE_BATCH]
    if (looked_BCSS == looked_BCSS[:, :1]).all():
        found = "1 channel" if looked_BCSS.shape[1] == 1 else f"{looked_BCSS.shape[1]} channels that are alike"
        raise StageError(NAME, f"joint: permutation is for colour, and these images have {found}", "take joint: quarter_turns, or leave it out")


def _batches(samples: Labelled, params: TeacherParams, member: str, draw: Draw) -> Batches:
    """Images and labels of any step, moved by `augment`."""
    import torch

    rows = len(samples.labels_N)
    order = index_batches(rows, params.batch_size, f"order/{member}", draw)
    if params.augment is None:
        return lambda step: samples.at(order(step))
    policy = params.augment.policy()
    contract = view_contract(policy)
    sizes_B2 = np.full((params.batch_size, 2), samples.shape["side_px"])

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows_B = order(step)
        epochs_B = np.arange(step * params.batch_size, (step + 1) * params.batch_size) // rows
        keys = [f"augment/{member}/{epoch}/{samples.sample_ids[row]}" for epoch, row in zip(epochs_B, rows_B, strict=True)]
        views_B = draw_views(policy, keys, sizes_B2, draw, 1).flatten()
        moved_BCSS = replay(np.asarray(samples.pixels_NCSS[rows_B]), views_B, contract)
        return torch.from_numpy(moved_BCSS), torch.from_numpy(samples.labels_N[rows_B])

    return batch


def _jointly(batches: Batches, joint: Transforms | None) -> Batches:
    """The same images in each transform, one transform after the other, under joint labels."""
    if joint is None:
        return batches
    import torch

    from stillroom.train import joint_label

    transforms = COUNTS[joint]

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images_BCSS, label_B = batches(step)
        moved = np.concatenate([transformed(images_BCSS.numpy(), joint, transform) for transform in range(transforms)])
        transform_B = torch.arange(transforms).repeat_interleave(len(label_B))
        return torch.from_numpy(moved), joint_label(label_B.repeat(transforms), transform_B, transforms)

    return batch
