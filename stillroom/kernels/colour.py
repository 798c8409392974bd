"""Colour: what changes a pixel by its level, its neighbours or its hue, in whole numbers.

What depends on a pixel's level alone is a table of 256 levels for each image and channel.
"""

import numpy as np

__all__ = ["adjust", "erase", "hue", "jitter", "permute", "randaugment_colour", "shade"]

# B = images, C = channels, H W = an image, L = 256 levels

LEVELS = np.arange(256)
# ITU-R 601-2 luma in 16-bit fixed point, as Pillow's convert("L").
_LUMA = np.array([19595, 38470, 7471])
# The six orders of three channels, the first as they are.
PERMUTATIONS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
# Bits that posterising keeps, by RandAugment's 31 magnitudes: 8 - round(magnitude / 7.5), halves to even as torchvision rounds.
_POSTERIZE_BITS = 8 - np.rint(np.arange(31) / 7.5).astype(np.int64)


def randaugment_colour(pixels_BCHW: np.ndarray, name: str, magnitude_B: np.ndarray, negative_B: np.ndarray) -> np.ndarray:
    """One of RandAugment's ops on colour, at magnitudes of 0 to 30 as torchvision scales them; signed ops weaken where `negative_B`.

    Within a level of Pillow's ImageEnhance and ImageOps, which truncate where these round.
    """
    factor_B = 1000 + np.where(negative_B, -30, 30) * magnitude_B
    if name == "brightness":
        return _mapped(pixels_BCHW, _blended(0, factor_B)[:, None])
    if name == "contrast":
        return _mapped(pixels_BCHW, _blended(_mean_luma(pixels_BCHW), factor_B)[:, None])
    if name == "color":
        return adjust(pixels_BCHW, _luma(pixels_BCHW), factor_B)
    if name == "sharpness":
        return adjust(pixels_BCHW, _softened(pixels_BCHW), factor_B)
    if name == "posterize":
        kept_B = 256 - (1 << (8 - _POSTERIZE_BITS[magnitude_B]))
        return _mapped(pixels_BCHW, (LEVELS & kept_B[:, None])[:, None])
    if name == "solarize":
        inverted_BL = 510 - 17 * magnitude_B[:, None] <= 2 * LEVELS
        return _mapped(pixels_BCHW, np.where(inverted_BL, 255 - LEVELS, LEVELS)[:, None])
    return _mapped(pixels_BCHW, _stretched(pixels_BCHW) if name == "autocontrast" else _equalized(pixels_BCHW))


def jitter(pixels_BCHW: np.ndarray, brightness_B: np.ndarray, contrast_B: np.ndarray, saturation_B: np.ndarray, hue_B: np.ndarray) -> np.ndarray:
    """Brightness, contrast and saturation by factors in 1/1000, then the hue by 1/10 degree; torchvision draws an order, here it is this one."""
    out = _mapped(pixels_BCHW, _blended(0, brightness_B)[:, None])
    out = _mapped(out, _blended(_mean_luma(out), contrast_B)[:, None])
    return hue(adjust(out, _luma(out), saturation_B), hue_B)


def adjust(pixels_BCHW: np.ndarray, base_BCHW: np.ndarray, factor_B: np.ndarray) -> np.ndarray:
    """Blend with `base_BCHW`: 1000 leaves the pixels, 0 gives the base, above 1000 leads away from it."""
    base = base_BCHW.astype(np.int32)
    sums = base * 1000 + (pixels_BCHW - base) * factor_B.astype(np.int32)[:, None, None, None]
    return np.clip((sums + 500) // 1000, 0, 255).astype(np.uint8)


def hue(pixels_BCHW: np.ndarray, tenths_B: np.ndarray) -> np.ndarray:
    """Turn colours about the grey axis by 1/10 degree; grey images stay as they are."""
    turned = np.flatnonzero(tenths_B)
    if pixels_BCHW.shape[1] != 3 or not len(turned):
        return pixels_BCHW
    from stillroom.kernels.geometry import cosine_sine

    cosine_B, sine_B = cosine_sine(tenths_B[turned] * 10)
    # Rodrigues' rotation about (1, 1, 1): circulant, rows summing to 1.
    third_B, slope_B = (1 - cosine_B) / 3, sine_B * (1 / 3) ** 0.5
    first_B3 = np.rint(np.stack([cosine_B + third_B, third_B - slope_B, third_B + slope_B], axis=1) * 65536).astype(np.int64)
    first_B3[:, 0] += 65536 - first_B3.sum(axis=1)
    weights_B33 = np.stack([np.roll(first_B3, shift, axis=1) for shift in range(3)], axis=1)
    sums = np.einsum("bij,bjhw->bihw", weights_B33, pixels_BCHW[turned].astype(np.int64))
    out = pixels_BCHW.copy()
    out[turned] = np.clip((sums + 32768) >> 16, 0, 255)
    return out


def shade(pixels_BCHW: np.ndarray, field_Bhw: np.ndarray, thousandths: int) -> np.ndarray:
    """Brighten and darken smoothly: a field of 127 x 2^20 multiplies by 1 + thousandths / 1000."""
    factor_B1hw = 1000 + np.rint(field_Bhw * (thousandths / (127 << 20))).astype(np.int32)[:, None]
    return np.clip((pixels_BCHW * factor_B1hw + 500) // 1000, 0, 255).astype(np.uint8)


def erase(pixels_BCHW: np.ndarray, box_B4: np.ndarray, level: int) -> np.ndarray:
    """Set a box (y, x, height, width) of each image to one level; a height of 0 leaves it."""
    out = pixels_BCHW.copy()
    for image_CHW, (y, x, h, w) in zip(out, box_B4.tolist(), strict=True):
        image_CHW[:, y : y + h, x : x + w] = level
    return out


def permute(pixels_BCHW: np.ndarray, permutation_B: np.ndarray) -> np.ndarray:
    """Reorder the three channels by one of PERMUTATIONS each."""
    return np.take_along_axis(pixels_BCHW, PERMUTATIONS[permutation_B][:, :, None, None], axis=1)


def _mapped(pixels_BCHW: np.ndarray, table_BcL: np.ndarray) -> np.ndarray:
    """Each pixel's level looked up in its image's table, of one channel for all (c = 1) or one each."""
    count, channels = pixels_BCHW.shape[:2]
    table_BCL = np.broadcast_to(table_BcL, (count, channels, 256)).astype(np.uint8)
    first_BC = np.arange(count * channels, dtype=np.intp).reshape(count, channels, 1, 1) * 256
    return table_BCL.ravel().take(first_BC + pixels_BCHW)


def _blended(base_B: np.ndarray | int, factor_B: np.ndarray) -> np.ndarray:
    """Levels blended with one level an image, [B, L]; factors as in `adjust`."""
    base_B1 = np.asarray(base_B, np.int64).reshape(-1, 1)
    return np.clip((base_B1 * 1000 + (LEVELS - base_B1) * factor_B.astype(np.int64)[:, None] + 500) // 1000, 0, 255)


def _luma(pixels_BCHW: np.ndarray) -> np.ndarray:
    """Grey levels [B, 1, H, W]; of anything but three channels the pixels themselves."""
    if pixels_BCHW.shape[1] != 3:
        return pixels_BCHW
    return ((np.einsum("c,bchw->bhw", _LUMA, pixels_BCHW.astype(np.int64)) + 0x8000) >> 16)[:, None]


def _mean_luma(pixels_BCHW: np.ndarray) -> np.ndarray:
    """The mean grey level of each image, rounded, int64 [B]."""
    luma = _luma(pixels_BCHW)
    area = luma[0].size if len(luma) else 1
    return (2 * luma.reshape(len(luma), -1).sum(axis=1, dtype=np.int64) + area) // (2 * area)


def _softened(pixels_BCHW: np.ndarray) -> np.ndarray:
    """A 3x3 mean in which the middle counts five times, as Pillow's SMOOTH; edges stay."""
    out = pixels_BCHW.astype(np.int32)
    height, width = out.shape[2:]
    if height < 3 or width < 3:
        return out
    inside = out[:, :, 1:-1, 1:-1]
    sums = 4 * inside + sum(out[:, :, y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3))
    softened = out.copy()
    softened[:, :, 1:-1, 1:-1] = (2 * sums + 13) // 26
    return softened


def _stretched(pixels_BCHW: np.ndarray) -> np.ndarray:
    """Autocontrast: each channel's darkest level to 0, its lightest to 255; [B, C, L]. A flat channel stays."""
    flat = pixels_BCHW.reshape(*pixels_BCHW.shape[:2], -1).astype(np.int64)
    low, high = flat.min(axis=2)[..., None], flat.max(axis=2)[..., None]
    reach = np.maximum(high - low, 1)
    return np.where(high > low, np.clip((2 * 255 * (LEVELS - low) + reach) // (2 * reach), 0, 255), LEVELS)


def _equalized(pixels_BCHW: np.ndarray) -> np.ndarray:
    """Histogram equalization, each channel by itself, as Pillow's ImageOps.equalize; [B, C, L]."""
    count, channels, height, width = pixels_BCHW.shape
    first = (np.arange(count * channels) * 256)[:, None]
    histogram = np.bincount((pixels_BCHW.reshape(count * channels, -1) + first).ravel(), minlength=count * channels * 256).reshape(-1, 256)
    lightest = 255 - (histogram[:, ::-1] > 0).argmax(axis=1)
    step = (height * width - histogram[np.arange(len(histogram)), lightest]) // 255
    before = np.cumsum(histogram, axis=1) - histogram
    spread = np.clip((before + step[:, None] // 2) // np.maximum(step, 1)[:, None], 0, 255)
    return np.where(step[:, None] > 0, spread, LEVELS).reshape(count, channels, 256)
