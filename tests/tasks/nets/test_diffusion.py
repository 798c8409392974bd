"""tasks.nets.diffusion: canvases, noise and sampling, against pixels that are known."""

import numpy as np
import pytest
import torch

from tasks.nets.diffusion import build_unet, canvas_px, make_scheduler, noise_of, on_canvas, sample, scale

CONFIG = {"task": "class_diffusion", "channels": 1, "side_px": 6, "num_classes": 2, "width": 8, "schedule": "cosine", "predicts": "noise"}


class Knowing(torch.nn.Module):
    """Answers with the noise that lies between what it is shown and the one image of each class."""

    device = torch.device("cpu")

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images, self.scheduler = images, make_scheduler(CONFIG)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, classes: torch.Tensor) -> "Knowing":
        kept = self.scheduler.alphas_cumprod[time]
        self.sample = (noisy - kept.sqrt() * self.images[classes]) / (1 - kept).sqrt()
        return self


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_a_net_that_knows_the_images_gives_the_images(guidance):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 6), np.uint8)
    # Class 2 is "no class": equal to the others here, so that guidance moves nothing.
    knowing = Knowing(scale(torch.from_numpy(np.concatenate([pixels, pixels[:1]]))))
    if guidance != 1:
        knowing.images[:2] = knowing.images[2]
        pixels[1] = pixels[0]
    drawn = sample(knowing, make_scheduler(CONFIG), noise_of([1, 2], CONFIG), [0, 1], CONFIG, steps=20, guidance=guidance)
    assert np.abs(drawn.astype(int) - pixels).max() <= 1


def test_noise_depends_on_its_own_seed_only():
    alone, among = noise_of([5], CONFIG), noise_of([4, 5, 6], CONFIG)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])


@pytest.mark.parametrize(("side_px", "canvas"), [(4, 4), (8, 8), (9, 10), (16, 16), (17, 20), (28, 28), (30, 32), (33, 40), (64, 64)])
def test_the_canvas_is_what_the_net_can_halve(side_px, canvas):
    assert canvas_px(side_px) == canvas
    config = {**CONFIG, "side_px": side_px}
    shown = torch.zeros(1, 1, canvas, canvas)
    assert build_unet(config)(shown, torch.tensor([0]), torch.tensor([2])).sample.shape == shown.shape


def test_what_does_not_fit_is_filled_by_the_edge():
    padded = on_canvas(np.arange(81, dtype=np.uint8).reshape(1, 1, 9, 9))
    assert padded.shape == (1, 1, 10, 10)
    assert padded[0, 0, 9].tolist() == [*range(72, 81), 80]


def test_a_net_for_digits_has_some_700_000_parameters():
    unet = build_unet({"side_px": 8, "channels": 1, "num_classes": 10, "width": 32})
    assert 650_000 < sum(weight.numel() for weight in unet.parameters()) < 710_000
