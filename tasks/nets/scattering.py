"""The scattering transform: wavelet moduli of two orders, averaged; features without weights."""

import numpy as np
import torch
from torch import nn

# B = images, C = channels, S = side, N = 2 S after mirroring, K = filters, P = paths

SLANT = 4.0  # over the number of angles: how much longer than wide a wavelet is


class Scattering(nn.Module):
    """Scattering of zeroth, first and second order with Morlet wavelets (Bruna and Mallat 2013).

    Images are mirrored at their borders, so that no wavelet sees an edge there. All paths are averaged over
    2^scales pixels and sampled as sparsely: float32 [B, C · P · ceil(S / 2^scales)²], where
    P = 1 + J L + L² J (J - 1) / 2. The bank keeps the Littlewood-Paley sum at 1 or below, so before the
    sampling no two images lie farther apart in scattering than in pixels.

    Args:
        side_px: S; 2^scales at least.
        scales: J; wavelets from scale 1 to 2^(J - 1).
        angles: L, over half a turn.
    """

    low: torch.Tensor
    bands: torch.Tensor

    def __init__(self, side_px: int, scales: int, angles: int) -> None:
        super().__init__()
        low_NN, bands_JLNN = filter_bank(2 * side_px, scales, angles)
        self.register_buffer("low", torch.from_numpy(low_NN).float(), persistent=False)
        self.register_buffer("bands", torch.from_numpy(bands_JLNN).float(), persistent=False)
        self.side_px, self.stride = side_px, 2**scales

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """The paths of each image: float32 [B, C · P · ceil(S / 2^J)²]."""
        mirrored = torch.cat([images_BCSS, images_BCSS.flip(-1)], -1)
        mirrored = torch.cat([mirrored, mirrored.flip(-2)], -2)
        spectrum_BCNN = torch.fft.fft2(mirrored)
        paths = [self._average(spectrum_BCNN)]
        for scale, bands_LNN in enumerate(self.bands):
            for band_NN in bands_LNN:
                first_BCNN = torch.fft.fft2(torch.fft.ifft2(spectrum_BCNN * band_NN).abs())
                paths.append(self._average(first_BCNN))
                # A modulus is smoother than its wavelet: finer wavelets find next to nothing in it.
                for coarser_NN in self.bands[scale + 1 :].flatten(0, 1):
                    paths.append(self._average(torch.fft.fft2(torch.fft.ifft2(first_BCNN * coarser_NN).abs())))
        return torch.stack(paths, 2).flatten(1)

    def _average(self, spectrum_BCNN: torch.Tensor) -> torch.Tensor:
        averaged = torch.fft.ifft2(spectrum_BCNN * self.low).real
        return averaged[..., : self.side_px : self.stride, : self.side_px : self.stride]


def scattering_size(channels: int, side_px: int, scales: int, angles: int) -> int:
    """How many numbers `Scattering` gives for an image."""
    paths = 1 + scales * angles + angles**2 * scales * (scales - 1) // 2
    return channels * paths * (-(-side_px // 2**scales)) ** 2


def filter_bank(side: int, scales: int, angles: int) -> tuple[np.ndarray, np.ndarray]:
    """The low-pass filter [N, N] and the wavelets [J, L, N, N] in frequency; both real, float64."""
    low = _gaussian(side, 0.8 * 2 ** (scales - 1), 0.0, 1.0, 0.0)
    bands = np.empty((scales, angles, side, side))
    for scale in range(scales):
        sigma, centre = 0.8 * 2**scale, 0.75 * np.pi / 2**scale
        for turn in range(angles):
            shape = (np.pi * turn / angles, SLANT / angles)
            at_centre, at_zero = (_gaussian(side, sigma, *shape, frequency) for frequency in (centre, 0.0))
            bands[scale, turn] = at_centre - at_zero * at_centre[0, 0] / at_zero[0, 0]  # so that the mean is 0: Morlet
    # Of a real image both half planes hold the same: a wavelet and its mirror image share one pair of frequencies.
    energy = (bands**2).sum((0, 1))
    energy = (energy + np.roll(energy[::-1, ::-1], 1, (0, 1))) / 2
    room = (1 - low**2)[energy > 1e-12] / energy[energy > 1e-12]
    return low, bands * np.sqrt(room.min())


def _gaussian(side: int, sigma: float, angle: float, slant: float, centre: float) -> np.ndarray:
    """A Gaussian of 1/sigma along `angle` and slant/sigma across it, around `centre`, made periodic."""
    turns = 2 * np.pi * np.arange(-3, 4)
    grid = (2 * np.pi * np.fft.fftfreq(side))[:, None] + turns  # [N, 7]
    y, x = grid[:, None, :, None], grid[None, :, None, :]
    along, across = np.cos(angle) * x + np.sin(angle) * y - centre, -np.sin(angle) * x + np.cos(angle) * y
    return np.exp(-(sigma**2) / 2 * (along**2 + (across / slant) ** 2)).sum((2, 3))
