"""score.dynamics: what one short training says of each sample: its early error, its margin, how often it is forgotten, how unsteady it is."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.fields import score_field
from stillroom.operators import Params, Table, Unit, Work, score
from tasks.hardness import HARD_END
from tasks.nets.models import Classifier
from tasks.nets.samples import load_labelled
from tasks.nets.training import fit, index_batches, seeded_net
from tasks.nets.zoo import NetName
from tasks.score._tally import Tally
from tasks.score._watch import CHECKPOINT_STEPS, AfterEpochs, WhileTraining, add_final

# What the papers use of 200 epochs, and what a shorter training clips.
WINDOW, DUAL_EPOCHS = 10, 30


class DynamicsParams(Params):
    """Parameters of `score.dynamics`."""

    net: NetName = Field(default="cnn", description="A net: cnn, convnet3, mlp, resnet18 (each with a width, as in cnn:32), or timm/<name>.")
    epochs: int = Field(default=20, ge=1, description="Epochs of each training; all samples are measured in each.")
    measure: Literal["training", "after"] = Field(
        default="training",
        description="training: each sample when it is trained on, at no cost; after: all samples after each epoch, at a third of the training's cost.",
    )
    el2n_epochs: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="The epochs whose error and gradient count for `el2n` and `grand`; left out, from 15 to 25 % of the training, but the first: 3 to 5 of 20.",
    )
    window: int | None = Field(
        default=None, ge=2, description=f"Epochs of a window of `dynamic_uncertainty` and `dual`; left out, {WINDOW}, or all where there are fewer."
    )
    dual_epochs: int | None = Field(
        default=None, ge=2, description=f"The first epochs, whose windows count for `dual`; left out, {DUAL_EPOCHS}, or all where there are fewer."
    )
    batch_size: int = Field(default=64, ge=1, description="Images a step.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak of the one-cycle schedule over all epochs.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's decoupled weight decay.")
    seeds: int = Field(default=3, ge=1, description="Trainings whose scores are averaged; one alone is a noisy measure.")
    side_px: int | None = Field(default=None, ge=1, description="Resize images to this square; left out, all must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images must agree.")
    torch_threads: int = Field(default=1, ge=1, description="Threads a training; part of what the scores depend on.")

    @model_validator(mode="after")
    def _within_the_training(self) -> Self:
        early, window, first = self.early_epochs, self.window_epochs, self.first_epochs
        if not all(1 <= epoch <= self.epochs for epoch in early) or len(set(early)) < len(early):
            raise ValueError(f"el2n_epochs: different epochs between 1 and {self.epochs} expected, not {list(early)}")
        if window > self.epochs:
            raise ValueError(f"window: {window} epochs don't fit into a training of {self.epochs}; make window smaller, or epochs larger")
        if not window <= first <= self.epochs:
            raise ValueError(f"dual_epochs: between {window}, which a window takes, and all {self.epochs} expected, not {first}")
        return self

    @property
    def early_epochs(self) -> tuple[int, ...]:
        """The epochs whose error and gradient count."""
        # Within the first, an error says little more than when the sample's turn came.
        first = min(max(2, -(-15 * self.epochs // 100)), self.epochs)
        return self.el2n_epochs or tuple(range(first, max(first, -(-self.epochs // 4)) + 1))

    @property
    def window_epochs(self) -> int:
        """Epochs of a window; 1 where the training is too short for one."""
        return self.window or min(WINDOW, self.epochs)

    @property
    def first_epochs(self) -> int:
        """The epochs whose windows count for `dual`."""
        return self.dual_epochs or min(DUAL_EPOCHS, self.epochs)


def _adds(params: DynamicsParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    made_by = {"net": params.net, "epochs": params.epochs, "seeds": params.seeds, "measure": params.measure}
    early, final = made_by | {"of_epochs": list(params.early_epochs)}, made_by | {"measure": "final"}
    facts: dict[str, dict[str, Any]] = {
        "el2n": {"low": 0, "high": sqrt(2), **early},
        "grand": {"low": 0, **early},
        "forgetting": {"low": 0, **made_by},
        "aum": made_by,
        "margin": {"low": 0, "high": 1, **final},
        "entropy": {"low": 0, **final},
    }
    if (window := params.window_epochs) > 1:
        facts["dynamic_uncertainty"] = {"low": 0, "window": window, **made_by}
        facts["dual"] = {"low": 0, "window": window, "of_epochs": list(range(1, params.first_epochs + 1)), **made_by}
    return {name: score_field(name, hard=HARD_END[name], **known) for name, known in facts.items()}


def _units(params: DynamicsParams) -> list[Unit]:
    return [Unit(f"seed-{seed}", value=seed, threads=params.torch_threads) for seed in range(params.seeds)]


def _mean_over_seeds(tables: Sequence[pa.Table]) -> pa.Table:
    """The mean of each score over the trainings; one infinite count makes the mean infinite."""
    names = [name for name in tables[0].column_names if name != "sample_id"]
    means = {name: np.mean([table[name].to_numpy() for table in tables], axis=0, dtype=np.float64) for name in names}
    return pa.table({"sample_id": tables[0]["sample_id"]} | {name: pa.array(mean, pa.float32()) for name, mean in means.items()})


@score(version=2, requires=["image", "label"], adds=_adds, units=_units, finish=_mean_over_seeds, random=True)
def dynamics(unit: Unit, inputs: Mapping[str, Table], params: DynamicsParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Score each sample by what a training says of it: EL2N, GraNd, forgetting, AUM, margin, entropy, dynamic uncertainty, DUAL.

    A net is trained on the input, without augmentation. In each epoch, every sample is measured once:
    when it is trained on (`measure: training`), or after the epoch and in evaluation mode (`after`);
    z are the logits, p their softmax, y the label (or its one-hot), h what the last layer sees. All are means over seeds.

    `el2n`, 0 to sqrt 2, high is hard: mean over `el2n_epochs` of ||p - y||_2. (Paul et al.,
    arXiv 2107.07075: epoch 20 of 200, mean of 10 seeds.)

    `grand`, from 0, high is hard: mean over `el2n_epochs` of ||p - y||_2 sqrt(1 + ||h||^2), the norm of
    the loss's gradient by weights and bias of the last layer. (The same paper, by all layers.)

    `forgetting`, 0 to epochs / 2 or infinity, high is hard: how often a sample was right in an epoch and
    wrong in the next. A sample that was right in none is infinitely hard, and so is one that some
    seed never learns. (Toneva et al., arXiv 1812.05159.)

    `aum`, any number, low is hard: mean over epochs of z_y - max_{k != y} z_k, negative where another
    class mostly wins, as with a wrong label. (Pleiss et al., arXiv 2001.10528.)

    `margin`, 0 to 1, low is hard: p of the first class less p of the second, of the trained net.
    `entropy`, 0 to log K nats, high is hard: of p, of the trained net. Both know nothing of the label.

    `dynamic_uncertainty`, 0 to about 0.7, high is hard: mean over all runs of `window` epochs of the standard
    deviation of p_y. (He et al., arXiv 2306.05175.) `dual`, likewise: mean over those within the first
    `dual_epochs` of std(p_y) (1 - mean p_y). (Cho et al., arXiv 2502.06905.) A training of one epoch has neither.

    Memory is a dozen numbers and `window` more a sample, whatever the number of epochs.

    Args:
        unit: one training, its seed in `value`.

    Returns:
        `sample_id` and the scores (float32) of this seed, in the input's order.

    Raises:
        InputError: a net that doesn't end in a linear layer.
    """
    import torch

    samples, seed = load_labelled(inputs["samples"], work.scratch, side_px=params.side_px, channels=params.channels), unit.value
    net = seeded_net(params.net, f"init/{seed}", work.draw, **samples.shape)
    asked = Classifier(net, samples.config(params.net), unit.name, work.device)
    tally = Tally(samples.labels_N, epochs=params.epochs, el2n_epochs=params.early_epochs, window=params.window_epochs, dual_epochs=params.first_epochs)
    rows = len(samples.labels_N)
    batch_size = min(params.batch_size, rows)  # else one step might end two epochs
    ends = {-(-epoch * rows // batch_size): epoch for epoch in range(1, params.epochs + 1)}
    order = index_batches(rows, batch_size, f"order/{seed}", work.draw)
    training = params.measure == "training"
    watch = WhileTraining(asked, tally, order, params.epochs) if training else AfterEpochs(asked, tally, samples.pixels_NCSS, ends)

    def on_step(done: int, steps: int) -> None:
        watch.on_step(done, steps)
        if done in ends:
            work.progress(done, steps)

    fit(
        net,
        lambda step: samples.at(order(step)),
        steps=max(ends),
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        device=work.device,
        on_step=on_step,
        on_logits=watch.on_logits,
        checkpoint=work,
        mean=samples.mean,
        std=samples.std,
        state={name: torch.from_numpy(values) for name, values in tally.state.items()},  # shares memory
        every=CHECKPOINT_STEPS,
    )
    add_final(asked, tally, samples.pixels_NCSS)
    scores = {name: pa.array(values, pa.float32()) for name, values in tally.scores().items()}
    yield pa.RecordBatch.from_pydict({"sample_id": samples.sample_ids} | scores)
