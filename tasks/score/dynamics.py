"""score.dynamics: what one short training says of each sample: its early error, and how often it is forgotten."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.operators import Params, Table, Unit, Work, score
from tasks.nets.models import Classifier
from tasks.nets.samples import load_labelled
from tasks.nets.training import fit, index_batches, seeded_net
from tasks.nets.zoo import NetName

# N = all samples, K = classes, C = channels, S = side

MEASURE_BATCH = 256
MEASURE_ROWS = 16 * MEASURE_BATCH


class DynamicsParams(Params):
    """Parameters of `score.dynamics`."""

    net: NetName = Field(default="cnn", description="A net: cnn, convnet3, mlp (each with a width, as in cnn:32), resnet18, or timm/<name>.")
    epochs: int = Field(default=20, ge=1, description="Epochs of each training; all samples are measured after each.")
    el2n_epochs: tuple[int, ...] = Field(
        default=(2,), min_length=1, description="The epochs after which the error is taken; their mean is `el2n`. Early ones: about a tenth of the training."
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
        if not all(1 <= epoch <= self.epochs for epoch in self.el2n_epochs) or len(set(self.el2n_epochs)) < len(self.el2n_epochs):
            raise ValueError(f"el2n_epochs: different epochs between 1 and {self.epochs} expected, not {list(self.el2n_epochs)}")
        return self


class Tally:
    """Scores of one training as they add up, epoch by epoch.

    Args:
        labels_N: int64.
        el2n_epochs: the epochs whose errors count.
    """

    def __init__(self, labels_N: np.ndarray, el2n_epochs: Sequence[int]) -> None:
        samples = len(labels_N)
        self.labels_N, self.el2n_epochs = labels_N, el2n_epochs
        self.state = {
            "error_sum": np.zeros(samples, np.float64),
            "events": np.zeros(samples, np.int64),
            "was_right": np.zeros(samples, bool),
            "ever_right": np.zeros(samples, bool),
        }

    def add(self, start: int, probs_BK: np.ndarray, epoch: int) -> None:
        """Take in what the net says of rows `start` and following after an epoch; epochs come in order."""
        rows = slice(start, start + len(probs_BK))
        labels_B, part = self.labels_N[rows], {name: values[rows] for name, values in self.state.items()}
        if epoch in self.el2n_epochs:
            errors_BK = probs_BK.astype(np.float64)
            errors_BK[np.arange(len(labels_B)), labels_B] -= 1
            part["error_sum"] += np.linalg.norm(errors_BK, axis=1)
        right_B = probs_BK.argmax(axis=1) == labels_B
        part["events"] += part["was_right"] & ~right_B
        part["was_right"][:] = right_B
        part["ever_right"] |= right_B

    def scores(self) -> dict[str, np.ndarray]:
        """`el2n` and `forgetting`, float64 [N]."""
        forgetting = np.where(self.state["ever_right"], self.state["events"].astype(np.float64), np.inf)
        return {"el2n": self.state["error_sum"] / len(self.el2n_epochs), "forgetting": forgetting}


def _units(params: DynamicsParams) -> list[Unit]:
    return [Unit(f"seed-{seed}", value=seed, threads=params.torch_threads) for seed in range(params.seeds)]


def _mean_over_seeds(tables: Sequence[pa.Table]) -> pa.Table:
    """The mean of each score over the trainings; one infinite count makes the mean infinite."""
    ids = tables[0]["sample_id"]
    means = {name: np.mean([table[name].to_numpy() for table in tables], axis=0, dtype=np.float64) for name in ("el2n", "forgetting")}
    return pa.table({"sample_id": ids} | {name: pa.array(mean, pa.float32()) for name, mean in means.items()})


@score(version=1, requires=["image", "label"], adds={"el2n": pa.float32(), "forgetting": pa.float32()}, units=_units, finish=_mean_over_seeds, random=True)
def dynamics(unit: Unit, inputs: Mapping[str, Table], params: DynamicsParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Score each sample by its early error (EL2N) and its forgetting events, both high where it is hard.

    A net is trained on the input, without augmentation, and all samples are measured in evaluation
    mode after each epoch; p are the softmax probabilities, y the one-hot label.

    `el2n`, 0 to sqrt 2: mean over seeds and over `el2n_epochs` of ||p - y||_2. Small is easy, large is
    hard or wrongly labelled. (Paul et al., arXiv 2107.07075: epoch 20 of 200, mean of 10 seeds.)

    `forgetting`, 0 to epochs / 2 or infinity: mean over seeds of how often a sample was right after an
    epoch and wrong after the next. A sample that was right after none is infinitely hard, and so is
    one that some seed never learns. (Toneva et al., arXiv 1812.05159, who look at each sample when it
    is trained on instead.)

    Memory is a few numbers a sample, whatever the number of epochs.

    Args:
        unit: one training, its seed in `value`.

    Returns:
        `sample_id`, `el2n` and `forgetting` (float32) of this seed, in the input's order.
    """
    import torch

    samples, seed = load_labelled(inputs["samples"], work.scratch, side_px=params.side_px, channels=params.channels), unit.value
    net = seeded_net(params.net, f"init/{seed}", work.draw, **samples.shape)
    asked = Classifier(net, samples.config(params.net), unit.name, work.device)
    tally = Tally(samples.labels_N, params.el2n_epochs)
    rows = len(samples.labels_N)
    batch_size = min(params.batch_size, rows)  # else one step might end two epochs
    ends = {-(-epoch * rows // batch_size): epoch for epoch in range(1, params.epochs + 1)}
    order = index_batches(rows, batch_size, f"order/{seed}", work.draw)

    def measure(done: int, steps: int) -> None:
        if done in ends:
            net.eval()
            for start in range(0, rows, MEASURE_ROWS):
                tally.add(start, asked.probs(samples.pixels_NCSS[start : start + MEASURE_ROWS], MEASURE_BATCH), ends[done])
            work.progress(done, steps)

    fit(
        net,
        lambda step: samples.at(order(step)),
        steps=max(ends),
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        device=work.device,
        on_step=measure,
        checkpoint=work,
        mean=samples.mean,
        std=samples.std,
        state={name: torch.from_numpy(values) for name, values in tally.state.items()},  # shares memory
    )
    scores = {name: pa.array(values, pa.float32()) for name, values in tally.scores().items()}
    yield pa.RecordBatch.from_pydict({"sample_id": samples.sample_ids} | scores)
