"""Losses for what a snapshot gives, and a plain training loop that shows their use.

The loop is to be read and copied: it is what a trainer of your own needs of labels, temperatures, weights and
state, and nothing else. Nothing else of stillroom depends on it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.streams import Stream

__all__ = [
    "aggregated",
    "batch_loss",
    "fit",
    "hard_cross_entropy",
    "joint_label",
    "kl_divergence",
    "load_checkpoint",
    "save_checkpoint",
    "soft_cross_entropy",
    "weighted_mean",
]

# B = rows of a batch, K = classes, M = transforms, J = K * M joint labels


def soft_cross_entropy(logits_BK: Tensor, soft_labels_BK: Tensor, weight_B: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """-sum_k q_k log p_k of each row, averaged by weight; p is the student's softmax at `temperature`.

    Times temperature squared, so that gradients stay of one size whatever it is (Hinton et al. 2015, section 2.1). Stored
    soft labels have their teacher's temperature already: give the same one, or 1 to learn the labels as they are.
    """
    losses_B = -(soft_labels_BK * functional.log_softmax(logits_BK / temperature, dim=1)).sum(dim=1)
    return weighted_mean(losses_B, weight_B) * temperature**2


def kl_divergence(logits_BK: Tensor, soft_labels_BK: Tensor, weight_B: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """KL(q || p): soft cross-entropy less the entropy of the labels, so that 0 is the best; its gradients are the same."""
    entropy_B = -torch.xlogy(soft_labels_BK, soft_labels_BK).sum(dim=1)
    return soft_cross_entropy(logits_BK, soft_labels_BK, weight_B, temperature=temperature) - weighted_mean(entropy_B, weight_B) * temperature**2


def hard_cross_entropy(logits_BK: Tensor, label_B: Tensor, weight_B: Tensor | None = None, *, smoothing: float = 0.0) -> Tensor:
    """-log p_label of each row, averaged by weight."""
    return weighted_mean(functional.cross_entropy(logits_BK, label_B, reduction="none", label_smoothing=smoothing), weight_B)


def weighted_mean(values_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """The mean by weight; 0, with gradients of 0, where all weights are, as on a rank whose share is padding."""
    if weight_B is None:
        return values_B.mean()
    return (values_B * weight_B).sum() / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)


def batch_loss(logits_BK: Tensor, batch: Mapping[str, Any], *, temperature: float = 1.0, hard: float = 0.0, world_size: int = 1) -> Tensor:
    """The loss of a stream's batch: soft labels where it has them, else labels, rows by their weight.

    Args:
        logits_BK: of the net for `batch["image"]`.
        batch: on the logits' device.
        temperature: of the soft labels.
        hard: how much of the loss hard labels are, 0 to 1, beside soft ones.
        world_size: of ranks whose gradients are averaged. Their mean is then that of the global batch, a share with padding or not.
    """
    loss = on_labels = hard_cross_entropy(logits_BK, batch["label"], batch["weight"])
    if "soft_label" in batch:
        on_soft = soft_cross_entropy(logits_BK, batch["soft_label"], batch["weight"], temperature=temperature)
        loss = hard * on_labels + (1 - hard) * on_soft if hard else on_soft
    return loss if world_size == 1 else loss * batch["weight"].sum() * world_size / batch["samples"]


def joint_label(label_B: Tensor, transform_B: Tensor, transforms: int) -> Tensor:
    """Class and transform as one label, M y + t: what self-supervised label augmentation learns (arXiv 1910.05872)."""
    return transforms * label_B + transform_B


def aggregated(logits_MBJ: Tensor) -> Tensor:
    """Logits of the K classes, [B, K], from those of B images in each of M transforms: of transform t the columns t::M, averaged."""
    return torch.stack([logits_BJ[:, transform :: len(logits_MBJ)] for transform, logits_BJ in enumerate(logits_MBJ)]).mean(dim=0)


def fit(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Stream,
    *,
    epochs: int,
    temperature: float = 1.0,
    hard: float = 0.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    checkpoint: Path | None = None,
    every_steps: int = 1000,
    device: str = "cpu",
) -> list[float]:
    """Train a net on a stream; with a checkpoint, from where the last run came to.

    Args:
        augment: applied to images on the device; none of it with stored views, whose labels are of the view as it is.
        checkpoint: where net, optimizer and stream are kept every so many steps and at the end; read if it is there.

    Returns:
        The mean loss of each epoch that was begun here.
    """
    net.to(device).train()
    if checkpoint is not None and checkpoint.exists():
        load_checkpoint(checkpoint, net, optimizer, stream)
    means, step = [], 0
    for _ in range(stream.epoch, epochs):
        total, batches = torch.zeros((), device=device), 0
        for number, batch in enumerate(stream, start=1):
            batch = {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}
            image = augment(batch["image"]) if augment else batch["image"]
            loss = batch_loss(net(image), batch, temperature=temperature, hard=hard)
            (loss / stream.micro_batches).backward()
            total, batches = total + loss.detach(), batches + 1
            if number % stream.micro_batches:
                continue
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if checkpoint is not None and step % every_steps == 0:
                save_checkpoint(checkpoint, net, optimizer, stream)
        optimizer.zero_grad(set_to_none=True)  # a rest of micro batches that makes no step
        means.append(float(total) / max(1, batches))
    if checkpoint is not None:
        save_checkpoint(checkpoint, net, optimizer, stream)
    return means


def save_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, stream: Stream) -> None:
    """Write all that a run goes on from, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}, part)
    os.replace(part, path)


def load_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, stream: Stream) -> None:
    """Go on from what `save_checkpoint` wrote; tensors and numbers alone are read, no pickled code."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    stream.load_state_dict(state["stream"])
