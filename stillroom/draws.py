"""Randomness that belongs to a row: numbers keyed by (seed, operator, sample id, draw).

A row's numbers are a hash of its key, so they are the same for one worker or many, in whatever
order rows are met, after a crash and a resume, and for any version of NumPy or torch.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from blake3 import blake3

__all__ = ["Draw"]


class Draw:
    """The random numbers of one operator under one seed.

    Args:
        seed: the stage's seed.
        operator: the operator's name, so that two operators never share a row's numbers.
    """

    def __init__(self, seed: int, operator: str) -> None:
        self.seed, self.operator = seed, operator
        self._prefix = f"{seed}\0{operator}\0".encode()

    def uniform(self, sample_ids: Sequence[str], count: int, draw: int = 0) -> np.ndarray:
        """Draw `count` numbers for each sample id; float64 [B, count], in [0, 1)."""
        raw = b"".join(self._bytes(sample_id, draw, 8 * count) for sample_id in sample_ids)
        words = np.frombuffer(raw, "<u8").reshape(len(sample_ids), count)
        return (words >> np.uint64(11)) * 2.0**-53

    def integer(self, sample_id: str, draw: int = 0) -> int:
        """A seed of 63 bits for a generator of this row alone, such as `torch.Generator`."""
        return int.from_bytes(self._bytes(sample_id, draw, 8), "little") >> 1

    def generator(self, sample_id: str, draw: int = 0) -> "np.random.Generator":  # quoted: NumPy loads it when it is first named
        """A NumPy generator of this row alone; slower than `uniform`, for what isn't uniform."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._bytes(sample_id, draw, 16), "little")))

    def order(self, sample_ids: Iterable[str], draw: int = 0) -> np.ndarray:
        """A permutation, int64 [B]: rows sorted by the hash of their key; it doesn't depend on the order given."""
        ids = list(sample_ids) if isinstance(sample_ids, Iterator) else sample_ids
        # The first half of each key: eight bytes a row, in millions of rows. Two alike are as good as never met.
        high = np.fromiter((int.from_bytes(self._bytes(sample_id, draw, 8), "big") for sample_id in ids), np.uint64)
        order = np.argsort(high)
        ranked = high[order]
        if (ranked[1:] == ranked[:-1]).any():
            low = np.fromiter((int.from_bytes(self._bytes(sample_id, draw, 16)[8:], "big") for sample_id in ids), np.uint64)
            return np.lexsort((low, high))
        return order

    def _bytes(self, sample_id: str, draw: int, count: int) -> bytes:
        return blake3(self._prefix + f"{draw}\0{sample_id}".encode()).digest(length=count)
