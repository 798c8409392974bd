"""Which epoch a pass over a stream is, where several processes make the pass and nobody conducts.

A DataLoader tells its data set nothing: workers copy it, keep it or not, and each begins a pass by itself. So the
stream and all copies of it share a few numbers in memory. The first worker of a pass writes down the epoch
together with the key of the pass, in one word; the others find the key and take the epoch. As a word is written at
once, and two that are first write the same, no lock is needed.
"""

from typing import Any, NamedTuple

import torch
from blake3 import blake3

__all__ = ["Pass", "Passes"]

_KEY = (1 << 32) - 1
_WORD, _EPOCH, _POSITION, _UNTOLD, _SLOTS = range(5)
MAX_WORKERS = 512


class Pass(NamedTuple):
    """One way through an epoch: from `start` on; a worker that was resumed has handed out what stands before `position`."""

    epoch: int
    start: int
    position: int


class Passes:
    """What the copies of one stream share. It travels to workers as shared memory, and to anybody else by value."""

    def __init__(self) -> None:
        self._shared = torch.zeros(_SLOTS + MAX_WORKERS, dtype=torch.int64).share_memory_()

    def announce(self, epoch: int, position: int = 0) -> None:
        """Make the next pass this epoch, from this position on."""
        self._shared[_EPOCH], self._shared[_POSITION] = epoch, position
        self._shared[_WORD] = epoch << 32  # last: it is what others look at

    def next(self, worker: Any = None) -> Pass:
        """The pass that comes next, or for a worker of a DataLoader, the one that it is to begin."""
        epoch, begun = self._word()
        epoch += begun not in (0, self._key(worker)[0] if worker else 0)
        start = int(self._shared[_POSITION]) if int(self._shared[_EPOCH]) == epoch else 0
        return Pass(epoch, start, start)

    def begin(self, worker: Any = None, epoch: int | None = None) -> Pass:
        """Begin it; the pass after it is the next epoch. A worker that was told its epoch, by a state, says which it is."""
        going = self.next(worker)
        if worker is None:
            self.announce(going.epoch + 1)
            return going
        key, slot = self._key(worker)
        self._shared[_SLOTS + worker.id] = slot
        self._shared[_WORD] = (going.epoch if epoch is None else epoch) << 32 | key
        return going

    @property
    def untold(self) -> bool:
        """Whether workers of somebody's DataLoader hand batches out, of which this process isn't told."""
        return bool(self._shared[_UNTOLD])

    @untold.setter
    def untold(self, value: bool) -> None:
        self._shared[_UNTOLD] = value

    def _word(self) -> tuple[int, int]:
        word = int(self._shared[_WORD])
        return word >> 32, word & _KEY

    def _key(self, worker: Any) -> tuple[int, int]:
        """The key of the pass that a worker begins next, and what it notes when it does.

        All workers of a pass have one seed less their number; those that stay keep it over passes, and
        `torch.manual_seed` may bring it back, so each counts how often it began with it.
        """
        if worker.id >= MAX_WORKERS:
            raise ValueError(f"a stream has at most {MAX_WORKERS} workers")
        seed = _hash(f"seed {worker.seed - worker.id} {worker.num_workers}")
        slot = int(self._shared[_SLOTS + worker.id])
        count = (slot & 0x7FFFFFFF) + 1 if slot >> 31 == seed else 1
        return _hash(f"pass {seed} {count}"), seed << 31 | count


def _hash(text: str) -> int:
    """A number from 1 to 2^32 - 1."""
    return int.from_bytes(blake3(text.encode()).digest(length=4), "little") or 1
