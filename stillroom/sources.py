"""What a stream shows: rows of a split at the places of its epochs, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stillroom.batches import Look, Shown, Viewer
from stillroom.digests import json_digest
from stillroom.errors import InputError, StoreError
from stillroom.order import GroupOrder, Order, Shuffle
from stillroom.tables import one_array

__all__ = ["Batch", "Read", "Source", "SplitRead", "SplitSource"]

# P = places, R = rows read, B = rows of a batch

OWN = {"image", "label", "soft_label", "transform", "sample_id", "weight", "epoch", "position", "samples"}
Batch = dict[str, Any]


class Read(Protocol):
    """Rows that were read, not yet decoded."""

    @property
    def nbytes(self) -> int:
        """Their size in memory."""

    def batch(self, start: int, stop: int) -> Batch:
        """The places from start to stop as a batch."""


class Source(Protocol):
    """What a stream shows. A place is `epoch * len(source) + position`."""

    seed: int
    digest: str
    unit: int

    def __len__(self) -> int:
        """Positions of an epoch."""

    def check(self, batch_size: int) -> None:
        """Raise where batches of this size can't be."""

    def read(self, places_P: np.ndarray) -> Read:
        """Read what stands at these places."""


class SplitSource:
    """One split in the order of its epochs.

    Args:
        viewer: reads and shows rows.
        rows: how many the split has.
        seed, shuffle: of the order.
        digest: of what the table holds.
        group, per_group: a column whose values take turns, `per_group` rows each.
        views_per_sample: how many views of a row stand beside one another.
        columns: further columns of a batch.
        weights: a column of weights.
    """

    def __init__(
        self,
        viewer: Viewer,
        rows: int,
        *,
        seed: int,
        shuffle: Shuffle = True,
        digest: str = "",
        group: str | None = None,
        per_group: int = 1,
        views_per_sample: int = 1,
        columns: Sequence[str] = (),
        weights: str | None = None,
    ) -> None:
        if views_per_sample < 1 or per_group < 1:
            raise InputError("stream", f"views_per_sample={views_per_sample}, per_group={per_group}", "both are at least 1")
        if views_per_sample > 1 and not viewer.look.views:
            raise InputError("stream", f"views_per_sample={views_per_sample} without views", "pass views='stored'")
        if own := sorted(set(columns) & OWN):
            raise InputError("stream", f"columns={own}: a batch has them anyway", "leave them out; weights=COLUMN gives `weight`")
        self.viewer, self.rows, self.seed, self.shuffle, self.unit = viewer, rows, seed, shuffle, views_per_sample
        self.group, self.per_group, self.columns, self.weights = group, per_group, tuple(columns), weights
        told = [digest, rows, seed, str(shuffle), group or "", per_group if group else 1, views_per_sample]
        self.digest = json_digest(told)[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "order"}

    @cached_property
    def order(self) -> Order | GroupOrder:
        """The order of the rows; that of groups reads their column."""
        if self.group is None:
            return Order(self.rows, seed=self.seed, shuffle=self.shuffle)
        if self.group not in self.viewer.table.schema.names:
            raise StoreError(f"column '{self.group}'", "is not in this split", f"it has {', '.join(self.viewer.table.schema.names)}")
        column = pa.chunked_array([batch.column(0) for batch in self.viewer.table.scan([self.group], 65_536)])
        ranks_N = pc.rank(column, tiebreaker="dense").to_numpy(zero_copy_only=False)
        return GroupOrder(ranks_N, per_group=self.per_group, seed=self.seed, shuffle=self.shuffle)

    def __len__(self) -> int:
        return (self.rows if self.group is None else len(self.order)) * self.unit

    def check(self, batch_size: int) -> None:
        """Raise where batches of this size can't be."""
        if batch_size % self.unit:
            raise InputError("stream", f"a batch of {batch_size} with {self.unit} views of a sample", f"take a multiple of {self.unit}")
        if self.group is not None:
            order = self.order
            assert isinstance(order, GroupOrder)
            order.check(batch_size // self.unit)

    def read(self, places_P: np.ndarray) -> "SplitRead":
        """Read the rows at these places, each once for all its views."""
        places_R = places_P[:: self.unit] // self.unit
        epochs_R, positions_R = np.divmod(places_R, len(self) // self.unit)
        rows_R = np.empty(len(places_R), np.int64)
        for epoch in np.unique(epochs_R):
            here = epochs_R == epoch
            rows_R[here] = self.order.at(int(epoch), positions_R[here])
        return SplitRead(self, self.viewer.take(rows_R), epochs_R)


@dataclass(frozen=True)
class SplitRead:
    """Rows of one split."""

    source: SplitSource
    taken: pa.Table
    epochs_R: np.ndarray

    @property
    def nbytes(self) -> int:
        """Their size in memory."""
        return int(self.taken.nbytes)

    def batch(self, start: int, stop: int) -> Batch:
        """The places from start to stop as a batch."""
        unit = self.source.unit
        first, last = start // unit, stop // unit
        rows = self.taken.slice(first, last - first)
        shown = self.source.viewer.show(rows, self.epochs_R[first:last], unit)
        batch = {"image": _images(shown, self.source.viewer.look), "label": torch.from_numpy(shown.labels_B), "sample_id": shown.sample_ids}
        if shown.soft_labels_BK is not None:
            batch["soft_label"] = torch.from_numpy(shown.soft_labels_BK)
        if shown.transforms_B is not None:
            batch["transform"] = torch.from_numpy(shown.transforms_B)
        batch["weight"] = torch.ones(stop - start)
        if self.source.weights:
            weights = one_array(rows[self.source.weights]).cast(pa.float32()).fill_null(1).to_numpy(zero_copy_only=False)
            batch["weight"] = torch.from_numpy(weights.repeat(unit))
        return batch | {name: _column(one_array(rows[name]), unit) for name in self.source.columns}


def _images(shown: Shown, look: Look) -> torch.Tensor:
    """The images of a batch as one tensor."""
    images = shown.images
    if not isinstance(images, np.ndarray):
        shapes = sorted({"x".join(map(str, image.shape)) for image in images})
        raise InputError("stream", f"images of one batch differ in shape: {', '.join(shapes[:3])}", "give side_px, and channels where they differ")
    tensor = torch.from_numpy(images if images.flags.writeable and images.flags.c_contiguous else images.copy())
    return tensor.to(torch.float32).div_(255) if look.pixels == "float" else tensor


def _column(values: pa.Array, unit: int) -> Any:
    """A column of a batch: a tensor of numbers or of vectors, else a list."""
    if pa.types.is_fixed_size_list(values.type) and not values.null_count:
        vectors = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
        return torch.from_numpy(vectors.repeat(unit, axis=0))
    if (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)) and not values.null_count:
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).repeat(unit))
    return [value for value in values.to_pylist() for _ in range(unit)]
