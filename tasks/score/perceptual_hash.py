"""score.perceptual_hash: a 64-bit hash that a re-encoded or resized picture keeps."""

from functools import cache

import numpy as np
import pyarrow as pa

from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Rows, row

# B = pictures of a batch

_SIDE_PX = 32
_FREQUENCIES = 8
# Below this standard deviation (in grey levels of 256) a picture is flat: its bits would be noise.
_FLAT = 2.0
_COSINE_BITS = 16


@row(version=1, requires=["image"], adds={"phash": pa.uint64()}, keeps_rows=True)
def perceptual_hash(batch: pa.RecordBatch) -> Rows:
    """Hash each picture by the signs of its low frequencies (pHash, 64 bits).

    Grey by ITU-R 601 luma, 32x32 by `stillroom.images.resize`, DCT-II, the 8x8 lowest frequencies;
    a bit is set where a coefficient is at least the median of the 63 without the mean (bit 0 is the
    mean, bit 1 the lowest frequency across). All of it is in whole numbers, so that a picture has the
    same hash in every batch and on every machine.

    Args:
        batch: B rows with `image`, encoded bytes.

    Returns:
        The B rows with `phash`, uint64; null where a picture is flat, absent or can't be decoded.
    """
    hashes = [_hash(value.as_py()) for value in batch["image"]]
    return Rows(batch.append_column("phash", pa.array(hashes, pa.uint64())))


def _hash(data: bytes | None) -> int | None:
    try:
        grey_HW = decode_batch([data], channels=1, side_px=_SIDE_PX)[0, 0].astype(np.int64)
    except ImageFault:
        return None  # to judge such a picture is for filter.decodable
    if grey_HW.std() < _FLAT:
        return None
    cosines = _cosines()
    coefficients = (cosines @ grey_HW @ cosines.T).ravel()
    bits = coefficients >= np.median(coefficients[1:])
    return sum(1 << place for place, bit in enumerate(bits) if bit)


@cache
def _cosines() -> np.ndarray:
    """The eight lowest rows of the DCT-II as whole numbers, int64 [8, 32].

    Without the factors that would make it orthonormal, as in imagehash and imagededup: they weigh
    the first row and column against the rest, and so move the median.
    """
    angles = np.pi * np.arange(_FREQUENCIES)[:, None] * (2 * np.arange(_SIDE_PX) + 1) / (2 * _SIDE_PX)
    return np.rint(np.cos(angles) * 2**_COSINE_BITS).astype(np.int64)
