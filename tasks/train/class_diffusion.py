"""train.class_diffusion: a small diffusion net that draws images of a class asked for."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Input, Params, Table, Unit, Work, train
from tasks.nets.diffusion import TASK, Predicts, Schedule, build_unet, make_scheduler, on_canvas, scale
from tasks.nets.models import ids_seen, model_batch, model_row
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import index_batches

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from torch import Tensor

# B = images of a batch, N = all samples, C H W = image

CHECKPOINT = "training"
CHECKPOINT_STEPS = 50
WARM_UP = 0.05


class ClassDiffusionParams(Params):
    """Parameters of `train.class_diffusion`."""

    side_px: int | None = Field(default=None, ge=4, le=128, description="Side of the images drawn; others are resized to it. Left out: that of the samples.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out: as the samples.")
    width: int = Field(default=32, ge=8, multiple_of=8, description="Channels of the first level; the others have twice as many.")
    steps: int = Field(default=1000, ge=1, description="Steps of training.")
    batch_size: int = Field(default=64, ge=1, description="Images of a step.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Its highest value: it rises over the first 5 % of the steps, and falls to 0 as a cosine.")
    label_dropout: float = Field(default=0.1, ge=0, lt=1, description="Share of the images shown without their class, which guidance needs.")
    ema: float = Field(default=0.99, ge=0, lt=1, description="Decay of the running average of the weights; the average is what is kept.")
    schedule: Schedule = Field(default="cosine", description="How noise grows over the 1,000 noise levels: cosine or linear.")
    predicts: Predicts = Field(
        default="velocity", description="What the net answers: the noise, or the velocity (Salimans and Ho), which is steadier in few steps."
    )
    torch_threads: int = Field(default=1, ge=1, description="Threads of training.")


def _units(inputs: Mapping[str, Table], params: ClassDiffusionParams) -> list[Unit]:
    return [Unit("model", threads=params.torch_threads)]


@train(version=1, units=_units, inputs={"samples": Input(requires=["image", "label"])})
def class_diffusion(unit: Unit, inputs: Mapping[str, Table], params: ClassDiffusionParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Train a class-conditional diffusion net on the samples' images and labels.

    Denoising diffusion (Ho et al., arXiv 2006.11239) by a UNet of diffusers, with the cosine schedule of
    Nichol and Dhariwal (arXiv 2102.09672), velocity prediction (Salimans and Ho, arXiv 2202.00512) and
    labels dropped for classifier-free guidance (arXiv 2207.12598). All that is random is keyed by the
    step, so that a stopped training goes on to the same bits.
    """
    samples = inputs["samples"]
    pixels_NCHW = load_images(samples, work.scratch, side_px=params.side_px, channels=params.channels)
    labels_N, names = load_labels(samples)
    config = {
        "task": TASK,
        "net": "unet2d",
        "channels": pixels_NCHW.shape[1],
        "side_px": pixels_NCHW.shape[3],
        "num_classes": len(names),
        "label_names": names,
        "mean": [0.5] * pixels_NCHW.shape[1],
        "std": [0.5] * pixels_NCHW.shape[1],
        "width": params.width,
        "schedule": params.schedule,
        "predicts": params.predicts,
    }
    run = _Run(config, params, work)
    rows_of = index_batches(len(labels_N), params.batch_size, "order", work.draw)
    for step in range(run.done, params.steps):
        rows_B = rows_of(step)
        run.step(step, on_canvas(pixels_NCHW[rows_B]), labels_N[rows_B])
        work.progress(step + 1, params.steps)
    saw = ids_seen(samples.frame(["sample_id"])["sample_id"].to_list())
    yield model_batch([model_row(run.averaged(), config, work.draw.seed, {"loss": run.mean_loss()}, saw)])


class _Run:
    """A training under way: net, optimizer, average of the weights, and how far it is."""

    def __init__(self, config: Mapping[str, Any], params: ClassDiffusionParams, work: Work) -> None:
        import torch

        self.config, self.params, self.work = config, params, work
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.draw.integer("init"))
            self.unet = build_unet(config)
        self.unet.to(work.device)  # type: ignore[arg-type]  # diffusers wraps `to` such that its type has no self
        self.unet.train()
        self.scheduler: Any = make_scheduler(config)
        self.names = [name for name, _ in self.unet.named_parameters()]
        self.weights: list[Tensor] = list(self.unet.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.loss = torch.zeros((), device=work.device)
        self.optimizer = torch.optim.AdamW(self.weights, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.done = self._resume()

    def step(self, step: int, pixels_BCHW: np.ndarray, labels_B: np.ndarray) -> None:
        """Learn from one batch."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(step, self.params)
        loss = self._loss(step, torch.from_numpy(pixels_BCHW), torch.from_numpy(labels_B))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        # The first weights are noise: the average starts short and lengthens.
        decay = min(self.params.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
            self.loss.lerp_(loss.detach(), 1 - min(0.99, step / (1 + step)))
        self.done = step + 1
        if self.done % CHECKPOINT_STEPS == 0 or self.done == self.params.steps:
            self.work.save(CHECKPOINT, self._packed())

    def averaged(self) -> "UNet2DModel":
        """The net with the averaged weights."""
        import torch

        with torch.no_grad():
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)
        return self.unet.eval()

    def mean_loss(self) -> float:
        """The loss, averaged over about the last 100 steps."""
        return round(self.loss.item(), 6)

    def _loss(self, step: int, pixels_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        import torch

        generator = torch.Generator().manual_seed(self.work.draw.integer(f"step/{step}"))
        count, levels = len(pixels_BCHW), self.scheduler.config.num_train_timesteps
        dropped_B = torch.rand(count, generator=generator) < self.params.label_dropout
        # One noise level from each of B equal parts of all levels: less variance than B free draws.
        level_B = ((torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count * levels).long().clamp(max=levels - 1)
        noise_BCHW = torch.randn(pixels_BCHW.shape, generator=generator)
        classes_B = labels_B.masked_fill(dropped_B, self.config["num_classes"])
        images, noise, level, classes = (tensor.to(self.work.device) for tensor in (scale(pixels_BCHW), noise_BCHW, level_B, classes_B))
        noisy = self.scheduler.add_noise(images, noise, level)
        wanted = noise if self.params.predicts == "noise" else self.scheduler.get_velocity(images, noise, level)
        return torch.nn.functional.mse_loss(self.unet(noisy, level, classes).sample, wanted)

    def _packed(self) -> bytes:
        import torch
        from safetensors.torch import save

        loss = self.loss.item()
        if not math.isfinite(loss):
            raise InputError("training", f"the loss is {loss} after step {self.done}", "a lower learning_rate may help")
        return save({"done": torch.tensor(self.done)} | {name: tensor.detach().cpu().clone() for name, tensor in self._state().items()})

    def _resume(self) -> int:
        """Bring back what `_packed` kept; the count of steps done, 0 without a checkpoint."""
        import torch
        from safetensors.torch import load

        packed = self.work.load(CHECKPOINT)
        if packed is None:
            return 0
        kept = load(packed)
        for weight in self.weights:
            moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            self.optimizer.state[weight] = {"step": torch.tensor(float(kept["done"]), device=weight.device), **moments}
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(kept[name])
        return int(kept["done"])

    def _state(self) -> "dict[str, Tensor]":
        """Every tensor that training changes, by a name for the checkpoint."""
        state = {"loss": self.loss}
        for name, weight, average in zip(self.names, self.weights, self.average, strict=True):
            moments = self.optimizer.state[weight]
            state |= {f"weight.{name}": weight, f"average.{name}": average, f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"]}
        return state


def _learning_rate(step: int, params: ClassDiffusionParams) -> float:
    rising = (step + 1) / max(1.0, WARM_UP * params.steps)
    return params.learning_rate * min(1.0, rising, 0.5 * (1 + math.cos(math.pi * step / params.steps)))
