"""Trajectory matching: how far a student's steps on synthetic images end from an expert's, and the gradient of that distance.

From theta_0, an expert's weights, a student takes T steps of plain SGD on the synthetic images:
theta_{i+1} = theta_i - beta g_i. The loss is L = ||theta_T - theta_M||^2 / ||theta_0 - theta_M||^2, theta_M being
the expert's weights some epochs later (Cazenavette et al., arXiv 2203.11932). Three engines differentiate it:

    unrolled  autograd through all steps: the reference. Memory grows with T.
    exact     the same gradient by its adjoint: steps are walked back one at a time, and the graph of one is held.
    tesla     what the TESLA paper computes (Cui et al., arXiv 2211.10586): as `exact`, but the weights before a step
              count as constant, so that what an image did in one step to the weights of the next ones is left out.
              It is the gradient for T = 1, and a first-order approximation beyond.

Importing this loads torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import RawIOBase
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.distill._tangents import convnet_logits
from tasks.nets.dsa import Dsa, apply_dsa
from tasks.nets.networks import ConvNet3
from tasks.nets.zoo import refuse_statistics

__all__ = ["Engine", "Matched", "Step", "Student", "Trail", "matching_gradient"]

# N = synthetic images, B = those of a step, C S S = image, K = classes, P = weights of the net, T = steps

Engine = Literal["exact", "tesla", "unrolled"]


class Step(NamedTuple):
    """One step of a student: the positions of its images, int64 [B], and how they are augmented."""

    rows_B: Tensor
    drawn: Dsa


@dataclass(frozen=True)
class Matched:
    """A loss and its gradient by images [N, C, S, S], targets [N, K] and learning rate; no gradient (None) where the loss isn't finite."""

    loss: float
    images_NCSS: Tensor | None = None
    targets_NK: Tensor | None = None
    rate: float = 0.0


class Trail:
    """The weights before each step, in an unbuffered file: only those of one step are in memory."""

    def __init__(self, file: RawIOBase) -> None:
        self.file = file

    def keep(self, step: int, weights_P: Tensor) -> None:
        """Put the weights before a step away."""
        values_P = weights_P.detach().cpu().numpy()
        self.file.seek(step * values_P.nbytes)
        self.file.write(values_P.data)

    def before(self, step: int, like_P: Tensor) -> Tensor:
        """Bring them back, of the type and on the device of `like_P`."""
        values_P = torch.empty(like_P.shape, dtype=like_P.dtype)
        self.file.seek(step * values_P.nbytes)
        self.file.readinto(values_P.numpy().data)
        return values_P.to(like_P.device)


class Student:
    """A net as a function of its weights, one flat vector.

    Raises:
        InputError: the net keeps running statistics, which are no weights (batch norm).
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        refuse_statistics(net, name)
        self.net = net.train()
        self.names, weights = zip(*net.named_parameters(), strict=True)
        self.shapes = [weight.shape for weight in weights]
        self.sizes = [weight.numel() for weight in weights]

    def flat(self, weights: dict[str, Tensor]) -> Tensor:
        """A state dict as one vector [P]."""
        return torch.cat([weights[name].reshape(-1) for name in self.names])

    def loss(self, weights_P: Tensor, images_BCSS: Tensor, targets_BK: Tensor) -> Tensor:
        """Cross-entropy with target probabilities, the mean over images."""
        return functional.cross_entropy(torch.func.functional_call(self.net, self._named(weights_P), (images_BCSS,)), targets_BK)

    def gradient(self, weights_P: Tensor, images_BCSS: Tensor, targets_BK: Tensor, *, create_graph: bool = False) -> Tensor:
        """Of the loss by the weights, [P]; `weights_P` must require gradients."""
        if isinstance(self.net, ConvNet3) and not create_graph:
            loss = functional.cross_entropy(convnet_logits(self.net, images_BCSS, self._named(weights_P)), targets_BK)
        else:
            loss = self.loss(weights_P, images_BCSS, targets_BK)
        (gradient_P,) = torch.autograd.grad(loss, weights_P, create_graph=create_graph)
        return gradient_P

    def slope(self, weights_P: Tensor, direction_P: Tensor, images_BCSS: Tensor, targets_BK: Tensor, *, written_out: bool = True) -> Tensor:
        """Of the loss along a direction in the weights: its product with the gradient. It can be differentiated once.

        Args:
            written_out: where the net has its tangents written out, take them; autograd's come to the same, and take longer.
        """
        if not (written_out and isinstance(self.net, ConvNet3)):
            weights_P = weights_P if weights_P.requires_grad else weights_P.detach().requires_grad_()
            return direction_P @ self.gradient(weights_P, images_BCSS, targets_BK, create_graph=True)
        logits_BK, tangents_BK = convnet_logits(self.net, images_BCSS, self._named(weights_P), self._named(direction_P)).chunk(2)
        by_logits_BK = (logits_BK.softmax(1) * targets_BK.sum(1, keepdim=True) - targets_BK) / len(images_BCSS)
        return (by_logits_BK * tangents_BK).sum()

    def _named(self, weights_P: Tensor) -> dict[str, Tensor]:
        parts = weights_P.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def matching_gradient(
    engine: Engine,
    student: Student,
    images_NCSS: Tensor,
    targets_NK: Tensor,
    rate: float,
    segment: tuple[Tensor, Tensor],
    steps: Sequence[Step],
    trail: Trail,
) -> Matched:
    """The loss of a segment of an expert's way, and its gradient.

    Args:
        rate: beta, the student's learning rate.
        segment: the expert's weights at its start and its end, [P] each.
        steps: what the student does.
        trail: where the weights before each step are kept; `unrolled` has no use for it.
    """
    match engine:
        case "unrolled":
            return _unrolled(student, images_NCSS, targets_NK, rate, segment, steps)
        case "exact" | "tesla":
            return _walked_back(student, images_NCSS, targets_NK, rate, segment, steps, trail, constant=engine == "tesla")


def _unrolled(student: Student, images_NCSS: Tensor, targets_NK: Tensor, rate: float, segment: tuple[Tensor, Tensor], steps: Sequence[Step]) -> Matched:
    start_P, end_P = segment
    images_NCSS, targets_NK = (tensor.detach().requires_grad_() for tensor in (images_NCSS, targets_NK))
    beta = torch.tensor(rate, dtype=start_P.dtype, device=start_P.device, requires_grad=True)
    weights_P = start_P.detach().requires_grad_()
    for rows_B, drawn in steps:
        weights_P = weights_P - beta * student.gradient(weights_P, apply_dsa(images_NCSS[rows_B], drawn), targets_NK[rows_B], create_graph=True)
    loss = (weights_P - end_P).square().sum() / (start_P - end_P).square().sum()
    if not torch.isfinite(loss):
        return Matched(loss.item())
    by_images, by_targets, by_beta = torch.autograd.grad(loss, (images_NCSS, targets_NK, beta))
    return Matched(loss.item(), by_images, by_targets, by_beta.item())


def _walked_back(
    student: Student,
    images_NCSS: Tensor,
    targets_NK: Tensor,
    rate: float,
    segment: tuple[Tensor, Tensor],
    steps: Sequence[Step],
    trail: Trail,
    *,
    constant: bool,
) -> Matched:
    """The adjoint, lambda_i = dL/dtheta_i: 2 (theta_T - theta_M) / D at the end, lambda_i = lambda_{i+1} - beta d(lambda_{i+1}^T g_i)/dtheta_i before.

    An image's part in step i is -beta d(lambda_{i+1}^T g_i)/dx, the rate's -lambda_{i+1}^T g_i. TESLA holds lambda constant,
    and its walk back is left to autograd, as in its authors' code: it is there to compare with.
    """
    start_P, end_P = segment
    weights_P = start_P.detach().clone()
    for step, (rows_B, drawn) in enumerate(steps):
        trail.keep(step, weights_P)
        gradient_P = student.gradient(weights_P.requires_grad_(), apply_dsa(images_NCSS[rows_B], drawn), targets_NK[rows_B])
        weights_P = weights_P.detach().sub_(gradient_P, alpha=rate)
    away_P, scale = weights_P - end_P, (start_P - end_P).square().sum()
    loss = (away_P.square().sum() / scale).item()
    if not math.isfinite(loss):
        return Matched(loss)
    lambda_P = 2 * away_P / scale
    by_images, by_targets, by_rate = torch.zeros_like(images_NCSS), torch.zeros_like(targets_NK), 0.0
    for step in reversed(range(len(steps))):
        rows_B, drawn = steps[step]
        before_P = trail.before(step, start_P)
        images_BCSS, targets_BK = (tensor[rows_B].detach().requires_grad_() for tensor in (images_NCSS, targets_NK))
        wanted = [images_BCSS, targets_BK] if constant or step == 0 else [images_BCSS, targets_BK, before_P.requires_grad_()]
        along = student.slope(before_P, lambda_P, apply_dsa(images_BCSS, drawn), targets_BK, written_out=not constant)
        from_images, from_targets, *from_weights = torch.autograd.grad(along, wanted)
        by_images.index_add_(0, rows_B, from_images, alpha=-rate)
        by_targets.index_add_(0, rows_B, from_targets, alpha=-rate)
        by_rate -= along.item()
        if from_weights:
            lambda_P = lambda_P.sub_(from_weights[0], alpha=rate)
    return Matched(loss, by_images, by_targets, by_rate)
