"""What distillations share while they learn: Adam in place, checkpoints, and a judge on validation. Importing this loads torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from stillroom.errors import InputError
from stillroom.operators import Table, Work
from tasks.distill._synthetic import CheckParams
from tasks.nets.dsa import DsaOp, apply_dsa, draw_dsa
from tasks.nets.models import Classifier
from tasks.nets.recipe import DC_BENCH, epoch_batches
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import fit, seeded_net
from tasks.nets.whitening import Whitening

__all__ = ["Judge", "State", "adam_step", "keep", "resumed"]

# N = synthetic images, B = those of a step, C S S = image, K = classes

CHECKPOINT = "distillation"
MEASURE_BATCH = 256
BETAS, EPSILON = (0.5, 0.9), 1e-12  # gradients of images are small

# All that a distillation goes on from: tensors by name, changed in place.
State = dict[str, Tensor]


def adam_step(state: State, name: str, gradient: Tensor, lr: float) -> None:
    """Move `state[name]` by Adam (arXiv 1412.6980), whose moments lie beside it; `state["updates"]` counts this step already."""
    mean, square, count = state[f"{name}_mean"], state[f"{name}_square"], int(state["updates"])
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient.square(), 1 - BETAS[1])
    step = (mean / (1 - BETAS[0] ** count)) / ((square / (1 - BETAS[1] ** count)).sqrt() + EPSILON)
    state[name].sub_(step, alpha=lr)


def keep(state: State, work: Work) -> None:
    """Keep the state as a checkpoint."""
    work.save(CHECKPOINT, save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))


def resumed(state: State, work: Work) -> bool:
    """Bring back what `keep` left; whether there was anything."""
    packed = work.load(CHECKPOINT)
    for name, tensor in load(packed).items() if packed else ():
        state[name].copy_(tensor)
    return packed is not None


class Judge:
    """How well nets trained on synthetic images do on a validation split.

    They are trained as DC-BENCH trains, at the images' own learning rate, and augmented as the images are meant to be.

    Args:
        config: of the nets, as `Classifier` needs it.
    """

    def __init__(
        self, config: Mapping[str, Any], augment: Sequence[DsaOp], params: CheckParams, work: Work, tune: Table, whitening: Whitening | None = None
    ) -> None:
        self.config, self.augment, self.work, self.nets = config, augment, work, params.check_nets
        self.recipe = DC_BENCH.of_epochs(params.check_epochs)
        self.labels_N, self.label_names = load_labels(tune)
        size = {name: config[name] for name in ("side_px", "channels")}
        self.pixels_NCSS = load_images(tune, work.scratch, **size, name="tune", whitening=whitening)

    def accuracy(self, images_NCSS: Tensor, targets_NK: Tensor, rate: float) -> float:
        """The mean over `check_nets` nets, 0 to 1; they start, and draw, alike in each look. A net that diverges has 0."""
        found = []
        for seed in range(self.nets):
            try:
                asked = self._trained(f"check/{seed}", images_NCSS, targets_NK, rate)
            except InputError:  # the learnt rate suits weights of some epochs, and may be too much for fresh ones
                found.append(0.0)
            else:
                found.append(float((asked.probs(self.pixels_NCSS, MEASURE_BATCH).argmax(1) == self.labels_N).mean()))
        return float(np.mean(found))

    def _trained(self, key: str, images_NCSS: Tensor, targets_NK: Tensor, rate: float) -> Classifier:
        recipe, samples = self.recipe, len(images_NCSS)
        shape = {name: self.config[name] for name in ("num_classes", "channels", "side_px")}
        net = seeded_net(self.config["net"], key, self.work.draw, **shape)
        batch = epoch_batches(samples, recipe.batch_size, key, self.work.draw)

        def batches(step: int) -> tuple[Tensor, Tensor]:
            rows_B = torch.from_numpy(batch(step)[1]).to(images_NCSS.device)
            drawn = draw_dsa(self.augment, self.work.draw.integer(key, step), len(rows_B))
            return apply_dsa(images_NCSS[rows_B], drawn), targets_NK[rows_B]

        fit(
            net,
            batches,
            steps=recipe.steps(samples),
            lr=rate,
            weight_decay=recipe.weight_decay,
            device=self.work.device,
            optimizer=recipe.make_optimizer,
            schedule=recipe.rate,
        )
        return Classifier(net, self.config, "judged", self.work.device).with_labels(self.label_names)
