"""Random convolutions: Gaussian filters that nobody trained, as features without weights."""

import torch
from torch import nn
from torch.nn import functional

from stillroom.draws import Draw

# B = images, C = channels, S = side, F = filters

KERNEL_PX = 6


class RandomConvs(nn.Module):
    """F random filters of 6 x 6, ReLU, and the mean of each quarter of the image (Coates, Lee and Ng 2011).

    Filters are normal draws with mean 0 over their pixels and length 1, so that even ground gives 0. float32 [B, 4 F].

    Args:
        draw: the stage's random numbers; the same seed gives the same filters in every process.
    """

    filters: torch.Tensor

    def __init__(self, channels: int, filters: int, draw: Draw) -> None:
        super().__init__()
        drawn = torch.from_numpy(draw.generator("random_convs").standard_normal((filters, channels, KERNEL_PX, KERNEL_PX)))
        drawn -= drawn.mean((1, 2, 3), keepdim=True)
        self.register_buffer("filters", (drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]).float(), persistent=False)

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """The answers in each quarter: float32 [B, 4 F]."""
        answers = functional.conv2d(images_BCSS, self.filters).relu()
        return functional.adaptive_avg_pool2d(answers, 2).flatten(1)
