"""How benchmarks of small data sets train: optimizer, schedule, order. Importing this loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import InputError
from stillroom.operators import Draw

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["DC_BENCH", "PCA_BENCH", "TrainingRecipe", "epoch_batches", "refuse_untunable"]

# N = all samples, B = samples of a batch

MOMENTUM = 0.9


@dataclass(frozen=True)
class TrainingRecipe:
    """How a net is trained.

    Args:
        optimizer: sgd: momentum 0.9, decay on all weights. adamw: decay on matrices and kernels alone.
        schedule: step: a tenth of the learning rate from half of the epochs on. cosine: down to 0, changed once an epoch.
        batch_size: at most; a pass over the samples is cut as evenly as can be.
    """

    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["step", "cosine"]
    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int

    def of_epochs(self, epochs: int | None) -> "TrainingRecipe":
        """The same with so many epochs; None changes nothing."""
        return self if epochs is None else replace(self, epochs=epochs)

    def steps(self, samples: int) -> int:
        """How many steps of the optimizer that is for so many samples."""
        return self.epochs * _steps_an_epoch(samples, self.batch_size)

    def rate(self, step: int, steps: int, lr: float) -> float:
        """The learning rate of a step that starts from `lr`."""
        epoch = step * self.epochs // steps
        if self.schedule == "step":
            return lr if epoch < self.epochs / 2 else lr / 10
        return lr / 2 * (1 + float(np.cos(np.pi * epoch / self.epochs)))

    def make_optimizer(self, net: "nn.Module", lr: float, weight_decay: float) -> "torch.optim.Optimizer":
        """The optimizer of a net."""
        import torch

        if self.optimizer == "sgd":
            return torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
        # Biases and the scales of norms have one dimension; to shrink them regularises nothing.
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in net.parameters() if weight.ndim > 1]},
            {"params": [weight for weight in net.parameters() if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


# Cui et al., DC-BENCH (arXiv 2207.09639); the same evaluation as in DC, DSA and MTT.
DC_BENCH = TrainingRecipe("sgd", "step", learning_rate=0.01, weight_decay=5e-4, batch_size=256, epochs=1000)
# Xiao and He, Rethinking Large-scale Dataset Compression (arXiv 2502.06434).
PCA_BENCH = TrainingRecipe("adamw", "cosine", learning_rate=1e-3, weight_decay=0.01, batch_size=128, epochs=300)


def epoch_batches(samples: int, batch_size: int, key: str, draw: Draw) -> Callable[[int], tuple[int, np.ndarray]]:
    """Give the epoch of any step and the positions of its samples, int64 [B].

    Each epoch is a permutation of its own, keyed by (key, epoch), cut into batches whose sizes differ by one
    at most: no batch spans two epochs, of ten samples a batch of 256 is ten, and none is a single sample left
    over, from which batch norm can't be taken.
    """
    if samples < 1:
        raise InputError("training", "there are no samples to train on")
    steps = _steps_an_epoch(samples, batch_size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.argsort(draw.uniform([key], samples, epoch)[0], kind="stable")

    def batch(step: int) -> tuple[int, np.ndarray]:
        epoch, place = divmod(step, steps)
        return epoch, order(epoch)[place * samples // steps : (place + 1) * samples // steps]

    return batch


def refuse_untunable(seeds: int, tune_seeds: int, learning_rates: Sequence[float]) -> None:
    """Refuse learning rates that can't be tried, as a validator of parameters does: by ValueError."""
    if tune_seeds > seeds:
        raise ValueError(f"tune_seeds: {tune_seeds} is more than seeds: {seeds}")
    if any(rate <= 0 for rate in learning_rates) or len(set(learning_rates)) < len(learning_rates):
        raise ValueError("learning_rates must be above 0, each once")


def _steps_an_epoch(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)
