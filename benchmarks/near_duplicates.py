"""What score.perceptual_hash and filter.near_duplicates find, miss and mistake, by threshold.

    python benchmarks/near_duplicates.py [--fashion-mnist FOLDER]

Prints the tables of docs/operators/filter/near_duplicates.md. Photos: scikit-learn's two sample
images, cut in 5 x 4 tiles each: 40 pictures that differ, and 12 changed copies of each. Drawings:
scikit-learn's 1,797 digits of 8x8 pixels, no two of which are copies; with a folder that holds
Fashion-MNIST's idx files, its 60,000 pictures too.
"""

import argparse
import gzip
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from stillroom.images import encode_png
from tasks.filter.near_duplicates import NearDuplicatesParams, near_duplicates
from tasks.neighbours import HammingIndex
from tasks.score.perceptual_hash import perceptual_hash

THRESHOLDS = (0, 2, 4, 6, 8, 10)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """The bytes of a file with this image."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def trimmed(image: Image.Image, percent: float) -> Image.Image:
    """Cut `percent` of width and height away, half on each side."""
    across, down = image.width * percent / 200, image.height * percent / 200
    return image.crop((round(across), round(down), round(image.width - across), round(image.height - down)))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 90": lambda image: encoded(image, "JPEG", quality=90),
    "JPEG, quality 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG, quality 10": lambda image: encoded(image, "JPEG", quality=10),
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "1.5 times the size": lambda image: encoded(image.resize((image.width * 3 // 2, image.height * 3 // 2))),
    "grey": lambda image: encoded(image.convert("L")),
    "20 % brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "blurred, radius 2 px": lambda image: encoded(image.filter(ImageFilter.GaussianBlur(2))),
    "2 % cropped": lambda image: encoded(trimmed(image, 2)),
    "5 % cropped": lambda image: encoded(trimmed(image, 5)),
    "10 % cropped": lambda image: encoded(trimmed(image, 10)),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def tiles() -> list[Image.Image]:
    """40 pictures that differ: each sample photo in 5 x 4 tiles."""
    found = []
    for photo_HWC in load_sample_images().images:
        height, width = photo_HWC.shape[0] // 4, photo_HWC.shape[1] // 5
        found += [Image.fromarray(photo_HWC[down * height :][:height, across * width :][:, :width]) for down in range(4) for across in range(5)]
    return found


def hashes(images: Sequence[bytes]) -> list[int | None]:
    """Each image's perceptual hash."""
    batch = pa.record_batch({"image": pa.array(images, pa.binary())})
    return perceptual_hash(batch).batch["phash"].to_pylist()


def photos() -> None:
    """Recall by change, and how many pictures that differ are taken for copies."""
    originals = tiles()
    of_originals = hashes([encoded(image) for image in originals])
    of_copies = {change: hashes([make(image) for image in originals]) for change, make in CHANGES.items()}
    print(f"\n{len(originals)} tiles of 2 photos ({of_originals.count(None)} flat, without a hash), {len(CHANGES)} copies of each\n")
    print("| recall | " + " | ".join(f"≤ {threshold}" for threshold in THRESHOLDS) + " |\n|---|" + "---|" * len(THRESHOLDS))
    for change, copies in of_copies.items():
        pairs = list(zip(of_originals, copies, strict=True))
        print(f"| {change} | " + " | ".join(percent(np.mean([within(*pair, threshold) for pair in pairs])) for threshold in THRESHOLDS) + " |")
    everything = [(tile, hash_) for copies in (of_originals, *of_copies.values()) for tile, hash_ in enumerate(copies) if hash_ is not None]
    tile_N, hash_N = np.array([tile for tile, _ in everything]), np.array([hash_ for _, hash_ in everything], np.uint64)
    first, second = np.triu_indices(len(tile_N), 1)
    same, distance = tile_N[first] == tile_N[second], np.bitwise_count(hash_N[first] ^ hash_N[second])
    near = [distance <= threshold for threshold in THRESHOLDS]
    print("| **all pairs: recall** | " + " | ".join(percent(found[same].mean()) for found in near) + " |")
    print("| **all pairs: precision** | " + " | ".join(percent(same[found].mean()) for found in near) + " |")
    print(f"| false pairs of {int((~same).sum()):,} | " + " | ".join(f"{int((found & ~same).sum()):,}" for found in near) + " |")


def drawings(name: str, pixels_NHW: np.ndarray, labels_N: np.ndarray) -> None:
    """How many small pictures, no two of which are copies on purpose, are taken for copies."""
    start = time.perf_counter()
    hash_N = pl.Series(hashes([encode_png(pixels_HW[..., None]) for pixels_HW in pixels_NHW]), dtype=pl.UInt64)
    print(f"\n{name}: {len(hash_N):,} pictures hashed in {time.perf_counter() - start:.1f} s, {hash_N.null_count()} flat\n")
    print("| | rows dropped | of those, twin of another class | pairs | of those, of two classes | seconds |\n|---|---|---|---|---|---|")
    samples = pl.DataFrame({"sample_id": [str(row) for row in range(len(hash_N))], "phash": hash_N})
    hashed = np.flatnonzero(hash_N.is_not_null())
    for threshold in (0, 1, 2, 3, 4):
        start = time.perf_counter()
        twins = near_duplicates({"samples": samples}, NearDuplicatesParams(max_distance=threshold, mode="tag"))["duplicate_of"]
        seconds = time.perf_counter() - start
        dropped = np.flatnonzero(twins.is_not_null())
        strangers = labels_N[dropped] != labels_N[twins.drop_nulls().cast(pl.Int64).to_numpy()]
        pairs = mixed = 0
        for lot in HammingIndex(hash_N.gather(hashed).to_numpy(), threshold).pairs(0, len(hashed)):
            pairs += len(lot.first)
            mixed += int((labels_N[hashed[lot.first]] != labels_N[hashed[lot.second]]).sum())
        shares = percent(strangers.mean()) if len(dropped) else "–", percent(mixed / pairs) if pairs else "–"
        print(f"| ≤ {threshold} | {len(dropped):,} ({percent(len(dropped) / len(hash_N))}) | {shares[0]} | {pairs:,} | {shares[1]} | {seconds:.2f} |")


def within(first: int | None, second: int | None, threshold: int) -> bool:
    """Whether two hashes are there and near."""
    return first is not None and second is not None and (first ^ second).bit_count() <= threshold


def percent(share: float) -> str:
    """A share as text: 99.5 %."""
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def idx(path: Path, header_bytes: int) -> np.ndarray:
    """The numbers of a gzipped idx file."""
    return np.frombuffer(gzip.decompress(path.read_bytes())[header_bytes:], np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fashion-mnist", type=Path, help="folder with train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz")
    arguments = parser.parse_args()
    photos()
    digits = load_digits()
    drawings("Digits, 8x8", (digits.images * 255 / 16).round().astype(np.uint8), digits.target)
    if folder := arguments.fashion_mnist:
        images, labels = idx(folder / "train-images-idx3-ubyte.gz", 16), idx(folder / "train-labels-idx1-ubyte.gz", 8)
        drawings("Fashion-MNIST, 28x28", images.reshape(-1, 28, 28), labels)


if __name__ == "__main__":
    main()
