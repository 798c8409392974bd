"""Scattering against convolutions in space, its stability, and its bound."""

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from tasks.nets.scattering import SLANT, Scattering, filter_bank, scattering_size

IMAGES = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)


def gaussian(sigma: float, angle: float, slant: float, reach: int = 24) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    return slant / (2 * np.pi * sigma**2) * np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2)), along


def morlet(scale: int, turn: int, angles: int) -> np.ndarray:
    sigma, centre = 0.8 * 2**scale, 0.75 * np.pi / 2**scale
    window, along = gaussian(sigma, np.pi * turn / angles, SLANT / angles)
    wave = window * np.exp(1j * centre * along)
    return wave - window * wave.sum() / window.sum()


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Of a periodic image, by repeating it well past the kernel's reach."""
    side, repeats = len(image), 2 * (-(-len(kernel) // 2) // len(image) + 1) + 1
    whole, start = fftconvolve(np.tile(image, (repeats, repeats)), kernel, mode="same"), repeats // 2 * side
    return whole[start : start + side, start : start + side]


def test_is_what_convolutions_in_space_give():
    scales, angles = 2, 4
    image = np.pad(IMAGES[0, 0].astype(float), ((0, 8), (0, 8)), mode="symmetric")
    bands = filter_bank(16, scales, angles)[1]
    gain = bands[0, 0].max() / np.abs(np.fft.fft2(convolved(np.eye(1, 256).reshape(16, 16), morlet(0, 0, angles)))).max()
    low, _ = gaussian(0.8 * 2 ** (scales - 1), 0, 1)
    paths = [image]
    for scale in range(scales):
        for turn in range(angles):
            paths.append(first := np.abs(convolved(image, gain * morlet(scale, turn, angles))))
            paths += [np.abs(convolved(first, gain * morlet(later, other, angles))) for later in range(scale + 1, scales) for other in range(angles)]
    expected = np.concatenate([convolved(path, low)[:8:4, :8:4].ravel() for path in paths])
    found = Scattering(8, scales, angles)(torch.from_numpy(IMAGES))[0].numpy()
    assert len(found) == scattering_size(1, 8, scales, angles)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_bank_adds_no_energy():
    low, bands = filter_bank(32, 3, 8)
    both = (bands**2).sum((0, 1))
    assert (low**2 + (both + np.roll(both[::-1, ::-1], 1, (0, 1))) / 2).max() == pytest.approx(1, abs=1e-9)
    assert np.abs(bands[:, :, 0, 0]).max() < 1e-12


def test_a_shift_by_one_moves_it_less_than_the_pixels():
    y, x = np.mgrid[:32, :32]
    stripes = [(np.sin(1.9 * (x + shift) + 0.4 * y) + 1).astype(np.float32) / 2 for shift in (0, 1)]
    net = Scattering(32, 3, 8)
    far = [torch.from_numpy(image)[None, None] for image in stripes]
    moved = (net(far[0]) - net(far[1])).norm() / net(far[0]).norm()
    assert moved < 0.1 * (far[0] - far[1]).norm() / far[0].norm()
