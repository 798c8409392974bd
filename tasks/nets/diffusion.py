"""The class-conditional diffusion net: how it is made, kept and sampled. Importing this loads no torch.

A net is told by its configuration (a model's `config`): `channels`, `side_px`, `num_classes`, `width`,
`schedule` and `predicts`. Class K, one above the last, means "no class"; guidance needs it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import InputError

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from torch import Tensor

__all__ = ["TASK", "Predicts", "Schedule", "build_unet", "canvas_px", "load_unet", "make_scheduler", "noise_of", "on_canvas", "sample", "scale"]

# B = images, C = channels, H W = height and width of the canvas, K = classes

TASK = "class_diffusion"
Schedule = Literal["cosine", "linear"]
Predicts = Literal["noise", "velocity"]

_BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
_PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction"}


def build_unet(config: Mapping[str, Any]) -> "UNet2DModel":
    """Make the untrained net of a configuration; its weights come from torch's global generator.

    Each level halves the side, until it is 8 px or less; the first is `width` wide, the others twice
    that; the lowest has attention. 8x8 grey images and width 32 give some 700,000 parameters.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    levels, width = _levels(config["side_px"]), config["width"]
    return UNet2DModel(
        sample_size=canvas_px(config["side_px"]),
        in_channels=config["channels"],
        out_channels=config["channels"],
        layers_per_block=1,
        block_out_channels=(width,) + (2 * width,) * (levels - 1),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
        # Fewer and wider heads than the library's 8 a head: a tenth less time for a step on a CPU.
        attention_head_dim=math.gcd(32, 2 * width),
        num_class_embeds=config["num_classes"] + 1,
    )


def load_unet(config: Mapping[str, Any], weights: bytes, device: str) -> "UNet2DModel":
    """The net of a row of models, in evaluation mode.

    Raises:
        InputError: the model is of another task.
    """
    from safetensors.torch import load

    if config.get("task") != TASK:
        raise InputError("model", f"its task is '{config.get('task')}', not '{TASK}'", "train it with train.class_diffusion")
    unet = build_unet(config)
    unet.load_state_dict(load(weights))
    unet.to(device)  # type: ignore[arg-type]  # diffusers wraps `to` such that its type has no self
    return unet.eval()


def make_scheduler(config: Mapping[str, Any]) -> "DDIMScheduler":
    """The noise schedule of a configuration: 1,000 steps in training, sampled by DDIM from the very last."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_schedule=_BETAS[config["schedule"]],
        prediction_type=_PREDICTIONS[config["predicts"]],
        # Starts at pure noise, which is what sampling starts from (Lin et al., arXiv 2305.08891).
        timestep_spacing="trailing",
        clip_sample=True,
    )


def canvas_px(side_px: int) -> int:
    """The side that the net works at: `side_px`, raised to what its levels can halve."""
    halves = 2 ** (_levels(side_px) - 1)
    return -(-side_px // halves) * halves


def on_canvas(pixels_BCHW: np.ndarray) -> np.ndarray:
    """Repeat the last row and column of uint8 images up to the canvas's side."""
    more = canvas_px(pixels_BCHW.shape[-1]) - pixels_BCHW.shape[-1]
    return np.pad(pixels_BCHW, ((0, 0), (0, 0), (0, more), (0, more)), "edge") if more else pixels_BCHW


def scale(pixels_BCHW: "Tensor") -> "Tensor":
    """uint8 images as float32 from -1 to 1."""
    return pixels_BCHW.float() / 127.5 - 1


def noise_of(seeds: Sequence[int], config: Mapping[str, Any]) -> "Tensor":
    """The start of each image, float32 [B, C, H, W], each from a generator of its own.

    Always from the CPU's generator, whose numbers a GPU's are not.
    """
    import torch

    side_px = canvas_px(config["side_px"])
    shape = (config["channels"], side_px, side_px)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample(
    unet: "UNet2DModel", scheduler: "DDIMScheduler", noise_BCHW: "Tensor", labels_B: Sequence[int], config: Mapping[str, Any], *, steps: int, guidance: float
) -> np.ndarray:
    """Draw an image of each class asked for, uint8 [B, C, side_px, side_px].

    DDIM with eta 0: nothing is drawn after the start. Guidance g gives the net's answer for the
    class, moved away from its answer for no class: none + g (class - none); 1 asks for the class alone.
    Floats depend on B, so that whoever wants the same pixels keeps B the same.
    """
    import torch

    images_BCHW = noise_BCHW.to(unet.device)
    classes_B = torch.tensor(list(labels_B), device=unet.device)
    both_2B = torch.cat([classes_B, torch.full_like(classes_B, config["num_classes"])])
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        for time in scheduler.timesteps:
            if guidance == 1:
                answer_BCHW = unet(images_BCHW, time, classes_B).sample
            else:
                wanted_BCHW, none_BCHW = unet(torch.cat([images_BCHW, images_BCHW]), time, both_2B).sample.chunk(2)
                answer_BCHW = none_BCHW + guidance * (wanted_BCHW - none_BCHW)
            images_BCHW = scheduler.step(answer_BCHW, time, images_BCHW, eta=0.0, return_dict=False)[0]
        pixels_BCHW = ((images_BCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    side_px = config["side_px"]
    return np.ascontiguousarray(pixels_BCHW[:, :, :side_px, :side_px])


def _levels(side_px: int) -> int:
    levels = 2
    while side_px / 2 ** (levels - 1) > 8:
        levels += 1
    return levels
