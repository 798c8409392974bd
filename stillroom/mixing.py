"""Several streams as one, by weight: which of them a place comes from, and how far each has come by then, without counting.

In every thousand places each source has as many as its weight says, to the thousandth, in an order drawn for that
thousand. So the place alone says where each source stands, and a mixed stream has the same small state as any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stillroom.digests import json_digest
from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.sources import Batch, Read, Source
from stillroom.streams import Stream

__all__ = ["MixedSource", "mix"]

# P = places asked for, I = sources

_PERIOD = 1000


def mix(streams: Sequence[tuple[Stream, float]], *, seed: int = 0, epoch_samples: int | None = None, **how: Any) -> Stream:
    """One stream of several, whose batches hold rows of each in proportion to the weights.

    Each source goes through its own epochs: none of its rows comes twice before all have come, however long a
    mixed epoch is. What the batches of all have in common (soft labels, columns) is in the mixed ones. Batch size,
    ranks and workers are those of the first stream unless `how` says otherwise.

    Args:
        streams: streams of images of one shape and labels of one kind, each with a weight above 0.
        seed: of which source comes when.
        epoch_samples: rows of a mixed epoch; None: as many as all sources have together.
        how: as of `Stream`: batch_size, micro_batches, drop_last, rank, world_size, num_workers.

    Raises:
        InputError: no streams, or weights that make no thousandth.
    """
    if not streams:
        raise InputError("mix", "there is no stream", "pass [(stream, weight), …]")
    first = streams[0][0]
    names = ("batch_size", "micro_batches", "drop_last", "rank", "world_size", "num_workers")
    source = MixedSource([stream.source for stream, _ in streams], [weight for _, weight in streams], seed, epoch_samples)
    return Stream(source, **({name: getattr(first, name) for name in names} | how))


class MixedSource:
    """Several sources as one: see `mix`."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int, epoch_samples: int | None = None) -> None:
        self.sources, self.seed, self.epoch_samples = list(sources), seed, epoch_samples
        self.counts_I = _apportioned(weights)
        if any(source.unit != 1 for source in sources):
            raise InputError("mix", "a stream with views_per_sample", "mix streams of single views")
        self.unit = 1
        told = [seed, epoch_samples, [int(count) for count in self.counts_I], [source.digest for source in sources]]
        self.digest = json_digest(told)[:16]

    def __len__(self) -> int:
        return self.epoch_samples or sum(len(source) for source in self.sources)

    def check(self, batch_size: int) -> None:
        """Raise where batches of this size can't be."""
        if any(getattr(source, "group", None) is not None for source in self.sources):
            raise InputError("mix", "a stream with group", "a mixed batch holds no equal parts of groups: leave it out")

    def read(self, places_P: np.ndarray) -> "MixedRead":
        """Read what stands at these places, from each source at once."""
        period_P, inside_P = np.divmod(places_P, _PERIOD)
        which_P, nth_P = np.empty(len(places_P), np.int64), np.empty(len(places_P), np.int64)
        for period in np.unique(period_P):
            here = period_P == period
            which, before = self._pattern(int(period))
            which_P[here] = which[inside_P[here]]
            nth_P[here] = period * self.counts_I[which_P[here]] + before[inside_P[here]]
        return MixedRead(which_P, [source.read(nth_P[which_P == at]) if (which_P == at).any() else None for at, source in enumerate(self.sources)])

    def _pattern(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place of a thousand: which source, and how many of that source stand before it."""
        words = Draw(self.seed, "mixing").generator("period", period).bit_generator.random_raw(_PERIOD)
        which = np.repeat(np.arange(len(self.sources)), self.counts_I)[np.argsort(words, kind="stable")]
        before = np.empty(_PERIOD, np.int64)
        for at in range(len(self.sources)):
            before[which == at] = np.arange(self.counts_I[at])
        return which, before


@dataclass(frozen=True)
class MixedRead:
    """Rows of several sources, and which of them stands where."""

    which_P: np.ndarray
    reads: list[Read | None]

    @property
    def nbytes(self) -> int:
        """Their size in memory."""
        return sum(read.nbytes for read in self.reads if read)

    def batch(self, start: int, stop: int) -> Batch:
        """The places from start to stop as a batch."""
        parts, at = [], []
        for number, read in enumerate(self.reads):
            first, last = ((self.which_P[:end] == number).sum() for end in (start, stop))
            if read is not None and last > first:
                parts.append(read.batch(int(first), int(last)))
                at.append(np.flatnonzero(self.which_P[start:stop] == number))
        back = np.argsort(np.concatenate(at))
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: _merged(name, [part[name] for part in parts], back) for name in shared}


def _merged(name: str, values: list[Any], back: np.ndarray) -> Any:
    """The parts of one column, in the order of the batch."""
    if not all(isinstance(value, torch.Tensor) for value in values):
        flat = [item for value in values for item in value]
        return [flat[at] for at in back]
    if len(kinds := {(value.dtype, value.shape[1:]) for value in values}) > 1:
        told = " and ".join(sorted(f"{dtype} {list(shape)}" for dtype, shape in kinds))
        raise InputError(
            "mix", f"'{name}' differs from stream to stream: {told}", "give all of them one side_px, channels and pixels, and mix sets of the same classes"
        )
    return torch.cat(values)[torch.from_numpy(back)]


def _apportioned(weights: Sequence[float]) -> np.ndarray:
    """How many places of a thousand each weight has, int64 [I]: the largest remainders are rounded up."""
    given = np.asarray(weights, np.float64)
    if not (np.isfinite(given) & (given > 0)).all():
        raise InputError("mix", f"weights {list(weights)}", "each is a number above 0")
    exact = given / given.sum() * _PERIOD
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: _PERIOD - counts.sum()]] += 1
    if not counts.all():
        raise InputError("mix", f"weights {list(weights)}: one is less than a thousandth of all", "weigh it more, or leave it out")
    return counts
