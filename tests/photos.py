"""Pictures on disk for tests that need some, whatever is on them."""

from pathlib import Path

import numpy as np

from stillroom.images import encode_png

__all__ = ["paint"]


def paint(folder: Path, number: int, *, side_px: int = 6, channels: int = 1, seed: int | None = None) -> Path:
    """Write `photos/a/N.png` or, for an odd N, `photos/b/N.png`: noise that depends on `seed`, or else on the number."""
    path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side_px, side_px, channels)
    path.write_bytes(encode_png(np.random.default_rng(number if seed is None else seed).integers(0, 250, shape).astype(np.uint8)))
    return path
