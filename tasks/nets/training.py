"""One training loop for every classifier, and the order in which it sees the samples. Importing this loads no torch."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import InputError
from stillroom.operators import Draw, Work

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["adamw", "channel_stats", "fit", "index_batches", "normalise", "one_cycle", "progress_of", "seeded_net"]

# B = samples of a batch, N = all samples, C H W = image, K = classes

WARM_UP = 0.3


def normalise(pixels: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """Turn uint8 [B, C, H, W] into float32 (pixels / 255 - mean) / std; C means and stds, in units of the full range.

    What is float32 already, as whitened and distilled images are, was normalised before, and stays as it is.
    """
    if pixels.is_floating_point():
        return pixels
    scale, shift = (constant.to(pixels.device) for constant in _scale_and_shift(tuple(mean), tuple(std)))
    return pixels.float().mul_(scale).sub_(shift)


def channel_stats(pixels_NCHW: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, in units of the full range, to 4 digits.

    Counted exactly from histograms. A channel of one value gets 1 as its deviation.
    """
    mean, std, values = [], [], np.arange(256) / 255
    for channel in range(pixels_NCHW.shape[1]):
        counts = sum((np.bincount(part[:, channel].ravel(), minlength=256) for part in _parts(pixels_NCHW)), np.zeros(256, np.int64))
        average = float(counts @ values / max(1, counts.sum()))
        deviation = float(np.sqrt(counts @ (values - average) ** 2 / max(1, counts.sum())))
        mean.append(round(average, 4))
        std.append(round(deviation, 4) or 1.0)
    return mean, std


def seeded_net(net: str, key: str, draw: Draw, *, num_classes: int, channels: int, side_px: int) -> "nn.Module":
    """Build a net of the zoo whose initial weights depend on the key alone; torch's global generator stays as it was."""
    import torch

    from tasks.nets.zoo import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.integer(key))
        return build(net, num_classes=num_classes, channels=channels, side_px=side_px)


def index_batches(n: int, batch_size: int, key: str, draw: Draw) -> Callable[[int], np.ndarray]:
    """Give the positions of the samples of any step, int64 [batch_size].

    Each epoch is a permutation of its own, keyed by (key, epoch); the epochs are laid end to end
    and cut into full batches, so that a batch may span two epochs and n may be below `batch_size`.
    Step s can be asked for at any time: nothing runs along.
    """
    if n < 1:
        raise InputError("training", "there are no samples to train on")

    @lru_cache(maxsize=4)
    def epoch_order(epoch: int) -> np.ndarray:
        return np.argsort(draw.uniform([key], n, epoch)[0], kind="stable")

    def batch(step: int) -> np.ndarray:
        start, stop = step * batch_size, (step + 1) * batch_size
        orders = [epoch_order(epoch) for epoch in range(start // n, (stop - 1) // n + 1)]
        return np.concatenate(orders)[start % n : start % n + batch_size]

    return batch


def one_cycle(step: int, steps: int, lr: float) -> float:
    """The learning rate of a step: from lr/25 up to lr in the first 30 %, down to lr/250,000 at the end, both as cosines.

    Smith and Topin, arXiv 1708.07120, in the two phases and with the defaults of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    peak, last = WARM_UP * steps - 1, steps - 1
    if step <= peak:
        return _cosine(lr / 25, lr, step / peak)
    return _cosine(lr, lr / 250_000, (step - peak) / (last - peak) if last > peak else 1.0)


def adamw(net: "nn.Module", lr: float, weight_decay: float) -> "torch.optim.Optimizer":
    """AdamW with its decay on all weights."""
    import torch

    return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def progress_of(work: Work, every: int, before: int = 0, planned: int | None = None) -> Callable[[int, int], None]:
    """An `on_step` of `fit` that tells `work` the progress, every so many steps and at the end.

    Args:
        before: steps of earlier trainings, which count as well.
        planned: steps of all of them together; None: of this one.
    """

    def report(done: int, steps: int) -> None:
        if done % every == 0 or done == steps:
            work.progress(before + done, steps if planned is None else planned)

    return report


def fit(
    net: "nn.Module",
    batches: "Callable[[int], tuple[Tensor, Tensor]]",
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    device: str,
    on_step: Callable[[int, int], None] | None = None,
    on_logits: "Callable[[int, Tensor], None] | None" = None,
    checkpoint: Work | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    state: "dict[str, Tensor] | None" = None,
    name: str = "fit",
    every: int = 200,
    optimizer: "Callable[[nn.Module, float, float], torch.optim.Optimizer] | None" = None,
    schedule: Callable[[int, int, float], float] = one_cycle,
) -> None:
    """Train `net` in place, in training mode, by AdamW under a one-cycle learning rate unless told; it is left in evaluation mode.

    Args:
        batches: gives images and targets of a step: uint8 [B, C, H, W] (normalised here by `mean` and `std`)
            or float32 (taken as they are); int64 [B] (cross-entropy) or float32 [B, K] (soft cross-entropy).
            It must depend on the step alone.
        on_step: called after each step with (steps done, steps).
        on_logits: called in each step with (steps done before it, the batch's logits [B, K] on the device, without gradient).
        checkpoint: where the state is kept every `every` steps under `name`. A later call with the same
            arguments goes on from there, to the same bits as one that was never stopped.
        state: tensors that `on_step` keeps, changed in place; saved and brought back with the rest.
        optimizer: makes one of (net, lr, weight_decay), as `adamw` does.
        schedule: gives the learning rate of (step, steps, lr), as `one_cycle` does.

    Raises:
        InputError: the loss isn't finite; looked at when a checkpoint is due and at the end.
    """
    import torch
    from torch.nn import functional

    net.to(device)
    stepper = (optimizer or adamw)(net, lr, weight_decay)
    done = _resume(net, stepper, state or {}, checkpoint.load(name) if checkpoint else None)
    # cuDNN may otherwise choose kernels that add up in any order.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step in range(done, steps):
            if not net.training:  # `on_step` may have measured
                net.train()
            images, targets = (tensor.to(device) for tensor in batches(step))
            images = normalise(images, mean, std)
            logits = net(images)
            if on_logits:
                on_logits(step, logits.detach())
            loss = functional.cross_entropy(logits, targets)
            stepper.zero_grad()
            loss.backward()
            for group in stepper.param_groups:
                group["lr"] = schedule(step, steps, lr)
            stepper.step()
            if on_step:
                on_step(step + 1, steps)
            if (step + 1) % every == 0 or step + 1 == steps:
                _refuse_divergence(loss, step + 1)
                if checkpoint:
                    checkpoint.save(name, _packed(net, stepper, state or {}, step + 1))
    net.eval()


@lru_cache(maxsize=16)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> "tuple[Tensor, Tensor]":
    """1 / (255 std) and mean / std, float32 [1, C, 1, 1]: made once, since small nets take a millisecond a step."""
    import torch

    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std_C)).float().view(1, -1, 1, 1), (mean_C / std_C).float().view(1, -1, 1, 1)


def _parts(pixels_NCHW: np.ndarray) -> list[np.ndarray]:
    return [pixels_NCHW[start : start + 1024] for start in range(0, len(pixels_NCHW), 1024)]


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) / 2 * (1 + float(np.cos(np.pi * share)))


def _refuse_divergence(loss: "Tensor", step: int) -> None:
    value = loss.item()
    if not np.isfinite(value):
        raise InputError("training", f"the loss is {value} after step {step}", "a lower learning rate may help")


def _packed(net: "nn.Module", optimizer: "torch.optim.Optimizer", state: "dict[str, Tensor]", done: int) -> bytes:
    """Net, moments, `state` and the count of steps as safetensors."""
    import torch
    from safetensors.torch import save

    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors |= {f"state.{name}": tensor for name, tensor in state.items()}
    # `save` refuses tensors that share memory, as tied weights do.
    return save({"done": torch.tensor(done)} | {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def _resume(net: "nn.Module", optimizer: "torch.optim.Optimizer", state: "dict[str, Tensor]", packed: bytes | None) -> int:
    """Bring back what `_packed` kept; the count of steps done, 0 without a checkpoint."""
    if packed is None:
        return 0
    from safetensors.torch import load

    tensors = load(packed)
    net.load_state_dict(_under(tensors, "net."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer.").items():
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, tensor in state.items():
        tensor.copy_(tensors[f"state.{name}"])
    return int(tensors["done"])


def _under(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
