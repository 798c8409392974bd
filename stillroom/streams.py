"""The trainer's side as a stream: ready batches in an order that is known beforehand, resumable at any step.

An epoch is a sequence of positions; the order says which row stands at each. A global batch is the next
`batch_size` positions, a rank's share a contiguous part of them, and a worker makes every W-th batch: so what
is learnt at which step depends on seed and epoch alone, and a state is a position.

    for batch in stream ─ passes ─▶ steps ─▶ windows ─▶ batches
                        (which      (whose    (one take    (pixels, labels,
                         epoch)      rows)     a few MB)    weights)
"""

import copy
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stillroom.ahead import cores, made_ahead, made_together
from stillroom.batches import Look, Viewer
from stillroom.errors import InputError, StillroomError
from stillroom.operators import Table
from stillroom.order import Shuffle
from stillroom.passes import Pass, Passes
from stillroom.sources import Batch, Read, Source, SplitSource
from stillroom.workers import WorkerContext, start_server

__all__ = ["Stream", "Topology", "share_of", "stream"]

# P = places, R = rows read, B = rows of a batch

# What one take reads: enough for an object store's latency, little enough to hold three of them.
WINDOW_BYTES, WINDOW_ROWS = 32 << 20, 4096
PRELOAD = ["torch", "stillroom.streams"]


class Topology(NamedTuple):
    """Which rank of how many."""

    rank: int
    world_size: int


class Stream(IterableDataset[Batch]):
    """Ready batches of a split, in global order, sharded by rank and worker. See docs/guides/distributed.md.

    Each pass is the next epoch. `state_dict()` says where the last batch that was handed out ends, and
    `load_state_dict` makes the next pass go on there, on any number of ranks and workers and with any batch size.

    Args:
        source: what is streamed.
        batch_size: of all ranks together, and all micro batches of a step.
        micro_batches: batches that make one step; each is a global batch of `batch_size / micro_batches`.
        drop_last: leave a last, smaller batch out. Otherwise it is filled up to equal shares with rows of weight 0.
        rank, world_size: None: of `torch.distributed`, else of the environment, else 0 of 1.
        num_workers: processes of its own that make batches; 0 makes them in a thread.

    Raises:
        InputError: the batch size can't be divided.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        micro_batches: int = 1,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.source, self.batch_size, self.micro_batches, self.drop_last = source, batch_size, micro_batches, drop_last
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self._passes = Passes()
        self._owned = False
        self._at: Pass | None = None
        self._resumed: Pass | None = None
        self._number = 0
        self._loader: DataLoader[Batch] | None = None
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        # A worker knows nothing of torch.distributed.
        rank, world_size = self.topology
        return self.__dict__ | {"rank": rank, "world_size": world_size, "_loader": None}

    def __len__(self) -> int:
        """Steps of a whole epoch, equally many on every rank; with micro batches, how many of those."""
        whole, rest = divmod(len(self.source), self.batch_size // self.micro_batches)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def topology(self) -> Topology:
        """Rank and world size, as they are now."""
        return topology(self.rank, self.world_size)

    @property
    def epoch(self) -> int:
        """The epoch under way, or between passes the next one: `for epoch in range(stream.epoch, epochs)` goes on after a resume."""
        at = self._at or self._passes.next()
        return self._whole(at.epoch, at.position)[0]

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch; workers hear of it, whoever's they are. Where a state was loaded, that very epoch goes on at its position."""
        if self._passes.next().epoch != epoch:
            self._passes.announce(epoch)
        self._at = None

    @property
    def sampler(self) -> "Stream":
        """Itself: Lightning tells the epoch to a loader's sampler, and nothing else to a run that goes on after an epoch's end."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Where the last batch that was handed out ends: a few numbers.

        Raises:
            InputError: batches come from the workers of a DataLoader, which tells nobody which of them it handed out.
        """
        worker = get_worker_info()
        if worker is not None:
            # StatefulDataLoader keeps each worker's state: where the pass began is what they have in common.
            at = self._at or self._resumed or self._passes.next(worker)
            return self._state(at.epoch, at.position) | {"start": at.start}
        if self._passes.untold:
            raise InputError(
                "stream",
                "which batches a DataLoader handed out isn't known here",
                "use `stream.state_after(batch)`, or snapshot.stream(num_workers=…)",
            )
        at = self._at or self._passes.next()
        return self._state(*self._whole(at.epoch, at.position))

    def state_after(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The state once this batch is learnt, whoever handed it out."""
        return self._state(*self._whole(int(batch["epoch"]), int(batch["position"])))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass go on where a state was taken.

        Raises:
            InputError: it is the state of another snapshot, split, order or seed.
        """
        if (unknown := {"epoch", "position", "seed", "digest"} - set(state)) or state["seed"] != self.source.seed or state["digest"] != self.source.digest:
            told = f"lacks {', '.join(sorted(unknown))}" if unknown else f"is of seed {state['seed']} and digest {state['digest']}"
            ours = f"this stream has seed {self.source.seed} and digest {self.source.digest}"
            raise InputError("state", f"{told}, {ours}", "open the snapshot, split, order and seed that it was taken of")
        epoch, position = int(state["epoch"]), int(state["position"])
        if get_worker_info() is not None:
            self._resumed = Pass(epoch, int(state.get("start", position)), position)
            return
        self._passes.announce(*self._whole(epoch, position))
        self._passes.untold = False
        self._at = None

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            self._at = None
            return self._as_worker()
        return self._from_workers() if self.num_workers else self._in_process()

    def _in_process(self) -> Iterator[Batch]:
        """A pass in this process: one thread reads, others make batches, the caller trains."""
        going = self._passes.begin()
        self._passes.untold = False
        yield from self._handed_out(made_together(self._jobs(going), cores()), going)

    def _from_workers(self) -> Iterator[Batch]:
        """A pass whose batches processes of our own make."""
        going = self._passes.begin()
        self._passes.untold = False
        if self._loader is None:
            worker = copy.copy(self)
            worker._passes, worker._owned, worker._at = Passes(), True, None
            context = WorkerContext()
            context.set_forkserver_preload(PRELOAD)
            # Before there are workers: their sockets are then in this process's temporary folder, which goes even if they are killed.
            start_server({})
            how: dict[str, Any] = {"multiprocessing_context": context, "persistent_workers": True, "worker_init_fn": _leave_interrupts_to_the_parent}
            self._loader = DataLoader(worker, batch_size=None, num_workers=self.num_workers, **how)
        self._loader.dataset._passes.announce(going.epoch, going.start)  # type: ignore[attr-defined]
        try:
            yield from self._handed_out(iter(self._loader), going)
        except GeneratorExit:
            raise
        except BaseException:
            # A worker may be gone. What holds on to the exception would keep the others; the next pass starts new ones.
            loader, self._loader = self._loader, None
            loader._iterator._shutdown_workers()  # type: ignore[union-attr]
            raise

    def _handed_out(self, batches: Iterator[Batch | StillroomError], going: Pass) -> Iterator[Batch]:
        """Note what is handed out; what was left when a loop was broken off is nobody's."""
        self._number += 1
        number, self._at = self._number, going
        for batch in batches:
            if isinstance(batch, StillroomError):
                raise batch
            if number != self._number and self.num_workers:
                raise InputError("stream", "is read on in a pass that a newer one has ended", "make a stream of its own for each loop")
            self._at = Pass(going.epoch, going.start, batch["position"])
            yield batch
        if number == self._number:
            self._at = None

    def _as_worker(self) -> Iterator[Batch]:
        """This worker's part of a pass: every W-th batch, from its own number on."""
        worker = get_worker_info()
        assert worker is not None
        going = self._passes.begin(worker, self._resumed and self._resumed.epoch)
        going, self._resumed = self._resumed or going, None
        self._passes.untold = True
        self._at = going
        try:
            # Workers share the cores that one process would have.
            threads = max(1, cores() // worker.num_workers)
            for batch in made_together(self._jobs(going, worker.id, worker.num_workers), threads):
                self._at = Pass(going.epoch, going.start, batch["position"])
                yield batch
        except StillroomError as error:
            if not self._owned:
                raise
            yield error  # type: ignore[misc]  # a DataLoader would make a traceback of it

    def _jobs(self, going: Pass, worker: int = 0, workers: int = 1) -> Generator[Callable[[], Batch], None, None]:
        """What makes the batches of a pass that are this rank's and this worker's."""
        for steps, read in made_ahead(self._windows(self._steps(going, worker, workers))):
            start = 0
            for step in steps:
                yield partial(_batch, read, start, step, going.epoch)
                start += len(step.positions)

    def _windows(self, steps: Iterator["_Step"]) -> Generator[tuple[list["_Step"], Read], None, None]:
        """Several batches' rows in one read: the first alone, then as many as its size allows."""
        samples, rows = len(self.source), 1
        while window := _up_to(steps, rows):
            places = np.concatenate([step.epoch * samples + step.positions for step in window])
            read = self.source.read(places)
            yield window, read
            each = max(1, read.nbytes // len(places))
            rows = min(WINDOW_ROWS, WINDOW_BYTES // each)

    def _steps(self, going: Pass, worker: int, workers: int) -> Iterator["_Step"]:
        """Which positions this rank has at each step, from `going.position` on."""
        size, _ = self._share()
        rank, world_size = self.topology
        stop, unit = len(self.source), self.source.unit
        done = -(-(going.position - going.start) // size)
        first = done + (worker - done) % workers
        for start in range(going.start + first * size, stop, workers * size):
            end = min(start + size, stop)
            if end - start == size or not self.drop_last:
                positions, real = share_of(start, end, Topology(rank, world_size), unit)
                yield _Step(going.epoch, positions, real, end, end - start)

    def _share(self) -> tuple[int, int]:
        """The size of a global batch, and of this rank's share of it."""
        world_size, unit = self.topology.world_size, self.source.unit
        parts = self.micro_batches * world_size
        if self.batch_size < 1 or self.micro_batches < 1 or self.batch_size % (parts * unit):
            parts_text = f"{world_size} ranks x {self.micro_batches} micro batches" + (f" x {unit} views" if unit > 1 else "")
            raise InputError("stream", f"batch_size={self.batch_size} can't be divided by {parts_text}", f"take a multiple of {parts * unit}")
        size = self.batch_size // self.micro_batches
        if get_worker_info() is None:
            self.source.check(size)
        return size, size // world_size

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        return {"epoch": epoch, "position": position, "seed": self.source.seed, "digest": self.source.digest}

    def _whole(self, epoch: int, position: int) -> tuple[int, int]:
        """The beginning of the next epoch, where nothing is left of this one."""
        left = len(self.source) - position
        least = self.batch_size // self.micro_batches if self.drop_last else 1
        return (epoch + 1, 0) if position and left < least else (epoch, position)


class _Step(NamedTuple):
    """A rank's share of one global batch, where the batch ends, and how many real rows all ranks have of it."""

    epoch: int
    positions: np.ndarray
    real: np.ndarray
    position: int
    samples: int


def topology(rank: int | None = None, world_size: int | None = None) -> Topology:
    """Rank and world size: as given, else of `torch.distributed`, else of RANK and WORLD_SIZE, else 0 of 1."""
    if rank is None and world_size is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return Topology(torch.distributed.get_rank(), torch.distributed.get_world_size())
    found = Topology(int(os.environ.get("RANK", 0)) if rank is None else rank, int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size)
    if not 0 <= found.rank < found.world_size:
        raise InputError("stream", f"rank {found.rank} of {found.world_size}", "ranks count from 0; give rank and world_size together")
    return found


def share_of(start: int, stop: int, where: Topology, unit: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A rank's positions of the global batch [start, stop), int64 [B], and 1 for each that is real, float32 [B].

    Shares are contiguous and equally large. Where they don't divide, the batch's own rows fill the last ones up.
    """
    each = -(-(stop - start) // (where.world_size * unit)) * unit
    offsets = np.arange(where.rank * each, (where.rank + 1) * each)
    return start + offsets % (stop - start), (offsets < stop - start).astype(np.float32)


def _up_to(steps: Iterator[_Step], rows: int) -> list[_Step]:
    """The next steps with as many rows as that, one at least."""
    window: list[_Step] = []
    held = 0
    for step in steps:
        window.append(step)
        held += len(step.positions)
        if held + len(step.positions) > rows:
            break
    return window


def _batch(read: Read, start: int, step: _Step, epoch: int) -> Batch:
    """The batch of a step, whose rows begin at `start` of what was read."""
    batch = read.batch(start, start + len(step.positions))
    batch["weight"] = batch["weight"] * torch.from_numpy(step.real)
    return batch | {"epoch": epoch, "position": step.position, "samples": step.samples}


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C in a terminal goes to all processes: the parent hears it, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stream(
    table: Table,
    *,
    batch_size: int,
    rows: int | None = None,
    digest: str = "",
    seed: int = 0,
    views: str | None = None,
    pixels: str = "float",
    channels: int | None = None,
    side_px: int | None = None,
    image: str | None = None,
    shuffle: Shuffle = True,
    group: str | None = None,
    per_group: int = 1,
    views_per_sample: int = 1,
    columns: Sequence[str] = (),
    weights: str | None = None,
    **how: Any,
) -> Stream:
    """Ready batches of a table; `Snapshot.stream` opens one on a split.

    Args:
        table: with `sample_id`, `image`, `label`.
        batch_size: rows of one step on all ranks together.
        rows: how many there are, where that is known; asked of the table otherwise.
        digest: of what the table holds: a state of another one is refused.
        seed: of order and views.
        views: "stored" shows stored views with their soft labels, None plain images.
        pixels: "float" (0 to 1), "uint8", or of a distilled set "normalised".
        channels, side_px: 1 or 3 channels, and the side that plain images are resized to, where pictures differ.
        image: the column of images; None takes decoded ones (`image_pixels`) where the split has them.
        shuffle: True shuffles blocks of rows and rows within a few thousand, "full" all rows; False leaves them as they stand.
        group, per_group: a column (`label`) whose values take turns, `per_group` rows each, so that a batch holds them in equal parts.
        views_per_sample: how many views of a sample stand beside one another, each counting as a row of the batch.
        columns: further columns of a batch: tensors of numbers, lists of anything else.
        weights: a column that `weight` gives; without one it is 1, and 0 for rows that only fill a batch up.
        how: what `Stream` takes: micro_batches, drop_last, rank, world_size, num_workers.

    Raises:
        InputError: arguments that exclude each other; a batch size that ranks can't share.
    """
    look = Look(views=views, seed=seed, pixels=pixels, channels=channels, side_px=side_px, image=image)
    viewer = Viewer(table, look, [*columns, *([weights] if weights else [])])
    source = SplitSource(
        viewer,
        table.rows if rows is None else rows,
        seed=seed,
        shuffle=shuffle,
        digest=digest,
        group=group,
        per_group=per_group,
        views_per_sample=views_per_sample,
        columns=columns,
        weights=weights,
    )
    return Stream(source, batch_size=batch_size, **how)
