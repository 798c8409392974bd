"""Kernels on colour against Pillow, torchvision and matrices; what they must leave alone."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from stillroom.kernels.colour import PERMUTATIONS, erase, hue, jitter, permute, randaugment_colour, shade


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photo(channels: int, seed: int = 1) -> np.ndarray:
    """Smooth, and neither black nor white anywhere: histograms as photographs have."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 190, 32)[:, None] + np.linspace(-20, 30, 24)
    return np.clip(ramp + rng.normal(0, 12, (channels, 32, 24)), 0, 255).astype(np.uint8)


def pillow(pixels_CHW: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0))


def back(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1)


ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "color": ImageEnhance.Color, "sharpness": ImageEnhance.Sharpness}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("magnitude, negative", [(0, False), (9, False), (9, True), (30, False), (30, True)])
def test_enhancers_are_within_a_level_of_pillow(name, magnitude, negative, channels):
    pixels = photo(channels)
    seen = randaugment_colour(pixels[None], name, np.array([magnitude]), np.array([negative]))[0]
    factor = 1 + (-0.9 if negative else 0.9) * magnitude / 30
    expected = back(ENHANCERS[name](pillow(pixels)).enhance(factor))
    # Pillow rounds the grey level that it blends with, and then truncates.
    assert np.abs(seen.astype(int) - expected).max() <= (2 if name in ("contrast", "sharpness") else 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_equalize_is_pillows_to_the_bit(channels):
    for seed in range(5):
        pixels = photo(channels, seed)
        assert (randaugment_colour(pixels[None], "equalize", np.array([0]), np.array([False]))[0] == back(ImageOps.equalize(pillow(pixels)))).all()


def test_autocontrast_is_within_a_level_of_pillow_and_leaves_flat_images():
    pixels = photo(3)
    seen = randaugment_colour(pixels[None], "autocontrast", np.array([0]), np.array([False]))[0]
    assert np.abs(seen.astype(int) - back(ImageOps.autocontrast(pillow(pixels)))).max() <= 1
    flat = np.full((1, 3, 5, 5), 77, np.uint8)
    for name in ("autocontrast", "equalize"):
        assert (randaugment_colour(flat, name, np.array([0]), np.array([False])) == flat).all()


@pytest.mark.parametrize("magnitude, bits", [(0, 8), (9, 7), (15, 6), (30, 4)])
def test_posterize_keeps_the_bits_that_torchvision_keeps(magnitude, bits):
    pixels = noise(1, 3, 8, 8)
    assert (randaugment_colour(pixels, "posterize", np.array([magnitude]), np.array([False]))[0] == back(ImageOps.posterize(pillow(pixels[0]), bits))).all()


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_solarize_inverts_above_torchvisions_threshold(magnitude):
    pixels, threshold = noise(1, 1, 16, 16), 255 - 8.5 * magnitude
    expected = np.where(pixels >= threshold, 255 - pixels, pixels)
    assert (randaugment_colour(pixels, "solarize", np.array([magnitude]), np.array([False])) == expected).all()


def test_images_of_a_batch_do_not_touch_each_other():
    pixels = np.stack([photo(3, seed) for seed in range(6)])
    magnitude, negative = np.array([3, 9, 30, 0, 15, 21]), np.array([True, False] * 3)
    for name in (*ENHANCERS, "posterize", "solarize", "autocontrast", "equalize"):
        together = randaugment_colour(pixels, name, magnitude, negative)
        alone = [randaugment_colour(pixels[at : at + 1], name, magnitude[at : at + 1], negative[at : at + 1])[0] for at in range(6)]
        assert (together == np.stack(alone)).all()


def test_hue_turns_about_the_grey_axis():
    pixels = np.array([[[[200]], [[40]], [[40]]], [[[90]], [[90]], [[90]]]], np.uint8)
    turned = hue(pixels, np.array([1200, 1200]))
    # A third of a turn permutes the channels, and grey stays grey.
    assert turned[0].ravel().tolist() in ([40, 200, 40], [40, 40, 200]) and turned[1].ravel().tolist() == [90, 90, 90]
    angle = np.deg2rad(30)
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
    colours = noise(3, 1, 50) // 2 + 64
    expected = np.einsum("ij,jhw->ihw", matrix, colours.astype(float))
    seen = hue(colours[None], np.array([300]))[0]
    inside = (expected > 0) & (expected < 255)
    assert np.abs(seen - expected)[inside].max() <= 1


def test_jitter_by_nothing_is_nothing():
    pixels, same = noise(2, 3, 6, 6), np.full(2, 1000)
    assert (jitter(pixels, same, same, same, np.zeros(2, int)) == pixels).all()


def test_shade_follows_its_field():
    pixels = np.full((1, 3, 2, 2), 100, np.uint8)
    field = np.array([[[0, 127 << 20], [-(127 << 20), 0]]], float)
    assert shade(pixels, field, 200)[0, 0].tolist() == [[100, 120], [80, 100]]


def test_erase_fills_its_box_and_a_box_without_height_is_none():
    pixels = noise(2, 1, 6, 7)
    seen = erase(pixels, np.array([[1, 2, 3, 4], [0, 0, 0, 0]]), 128)
    assert (seen[0, :, 1:4, 2:6] == 128).all() and (seen[1] == pixels[1]).all()
    assert (seen[0] != pixels[0]).sum() <= 12


def test_permutations_are_the_six_orders():
    assert sorted(map(tuple, PERMUTATIONS.tolist())) == [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    pixels = noise(6, 3, 2, 2)
    for at, seen in enumerate(permute(pixels, np.arange(6))):
        assert (seen == pixels[at][PERMUTATIONS[at]]).all()
