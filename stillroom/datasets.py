"""The trainer's side in torch: a split as a map-style data set, and a loader whose order is known beforehand.

Which samples come when, and which stored view each shows, depends on (seed, epoch, sample id) alone:
never on workers, batch size or what was read before. An epoch travels to the workers inside the
indices that the loader's sampler gives out, because workers that persist don't see `set_epoch`.
"""

import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.images import decode_batch
from stillroom.operators import Table
from stillroom.soft_labels import decode
from stillroom.tables import one_array
from stillroom.views import VIEW_TYPE, check_contract, identity_views, label_of, replay

__all__ = ["EpochOrder", "Place", "TorchSplit", "loader"]

# B = samples of a batch, C H W = an image, K = classes

# Not Lance, which warns whenever a process that has loaded it forks: each worker loads it itself.
PRELOAD = ["torch", "stillroom.datasets"]
# The process that first read any split. Lance's threads don't survive a fork, and its locks may not.
_read_in: int | None = None


class Place(NamedTuple):
    """Which sample, in which epoch."""

    epoch: int
    row: int


class TorchSplit(Dataset[dict[str, Any]]):
    """One split as a map-style data set: `split[row]` is a dict of

    - `image`: float32 [C, H, W] from 0 to 1, or uint8 as stored; normalise it as your model likes,
    - `label`: int64,
    - `soft_label`: float32 [K], with stored views that a teacher labelled: for the very view that `image` shows; of a distilled
      set, what was learnt for the image,
    - `sample_id`: str.

    In epoch e a sample shows its view (o + e) mod V, V views a sample, o by its id and the seed: each
    once before any comes again, and not all samples their first view at once. A row without stored views
    comes as it is, with all probability on its label. Views that no teacher labelled have their row's label alone.

    The table is opened at the first read, in each process. A process forked after a read raises at
    once: use `loader`, or a start method other than fork.

    Args:
        table: a split of a snapshot, or any table with `sample_id`, `image`, `label`.
        views: "stored" shows stored views with their soft labels, None plain images.
        seed: of the order and of the views.
        pixels: "float", "uint8", or of a distilled set "normalised": float32 without the loss of 8 bits, normalised as `training` tells.
        channels: 1 or 3, where pictures differ in it; None as they are.

    Raises:
        InputError: `views` or `pixels` is none of these words; views and normalised pixels at once.
        StoreError: at the first read: no stored views, or this stillroom replays them otherwise.
    """

    def __init__(
        self,
        table: Table,
        *,
        views: str | None = None,
        seed: int = 0,
        pixels: str = "float",
        channels: int | None = None,
    ) -> None:
        if views not in ("stored", None) or pixels not in ("float", "uint8", "normalised"):
            raise InputError("TorchSplit", f"views={views!r}, pixels={pixels!r}", "views is 'stored' or None, pixels 'float', 'uint8' or 'normalised'")
        if views and pixels == "normalised":
            raise InputError("TorchSplit", "views='stored' goes by images of 8 bits, pixels='normalised' has none", "pass one of the two")
        self.table, self.views, self.seed, self.pixels, self.channels = table, views, seed, pixels, channels
        self.epoch = 0
        self._contract: dict[str, Any] | None = None
        self._checked = False
        self._told: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.table.rows

    @property
    def training(self) -> dict[str, Any] | None:
        """How nets are to be trained on a distilled set: mean, std, learning_rate, augment, labels, net; None of any other."""
        if "training" not in self.table.schema.names:
            return None
        _note_read()
        told = (value for batch in self.table.scan(["training"]) for value in batch.column(0).drop_null().to_pylist())
        return json.loads(next(told, "null"))

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        row = place.row if isinstance(place, Place) else place
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split of {len(self)}")  # `for sample in split` ends here
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int | Place]) -> list[dict[str, Any]]:
        """Several samples at once, as DataLoader asks for them; a bare row is shown as of `set_epoch`."""
        _note_read()
        contract = self._ready()
        asked = [place if isinstance(place, Place) else Place(self.epoch, int(place)) for place in places]
        shown = "pixels" if self.pixels == "normalised" else "image"
        learnt = ["soft_label"] if not contract and "soft_label" in self.table.schema.names else []
        table = self.table.take([place.row for place in asked], ["sample_id", shown, "label", *(["views"] if contract else learnt)])
        sample_ids, labels = table["sample_id"].to_pylist(), torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
        soft_labels = _learnt(one_array(table["soft_label"]), labels) if learnt else None
        if shown == "pixels":
            return _items(list(self._normalised(one_array(table["pixels"]))), labels, sample_ids, soft_labels)
        images = [decode_batch([image], channels=self.channels)[0] for image in table["image"].to_pylist()]
        if contract:
            images, soft_labels = self._viewed(images, one_array(table["views"]), sample_ids, labels.numpy(), asked, contract)
        return _items([self._tensor(image) for image in images], labels, sample_ids, soft_labels)

    def set_epoch(self, epoch: int) -> None:
        """Show the views of this epoch from now on. A loader's batches carry their own: see `EpochOrder`."""
        self.epoch = epoch

    def _ready(self) -> dict[str, Any] | None:
        """The contract of the stored views, checked at the first read; None for plain images."""
        if not self._checked:
            if self.views and "views" not in self.table.schema.names:
                raise StoreError("views", "are not in this split", "pass views=None for plain images, or build it with reinforce.teacher or reinforce.views")
            if self.pixels == "normalised" and not {"pixels", "training"} <= set(self.table.schema.names):
                raise StoreError("pixels", "are not in this split", "pass pixels='float'; distill.tesla and distill.dm store them")
            self._contract = check_contract(self.table.schema.field("views")) if self.views else None
            self._checked = True
        return self._contract

    def _viewed(
        self,
        images: list[np.ndarray],
        views: pa.ListArray,
        sample_ids: list[str],
        labels_B: np.ndarray,
        asked: list[Place],
        contract: dict[str, Any],
    ) -> tuple[list[np.ndarray], torch.Tensor | None]:
        """Pixels uint8 [C, side, side] and soft labels float32 [B, K], if there are any, of the view that each of B places asks for."""
        counts_B = views.value_lengths().fill_null(0).to_numpy()
        stored, plain = np.flatnonzero(counts_B), np.flatnonzero(counts_B == 0)
        start = Draw(self.seed, "datasets.view")
        chosen = [(start.integer(sample_ids[at]) + asked[at].epoch) % int(counts_B[at]) for at in stored]
        records = views.values.take(pa.array(views.offsets.to_numpy()[stored] + np.array(chosen, np.int64)))
        drawn = pa.StructArray.from_arrays([records.field(field.name) for field in VIEW_TYPE], fields=list(VIEW_TYPE))
        whole = identity_views(np.array([images[at].shape[1:] for at in plain], np.int64))
        in_order = np.argsort(np.concatenate([stored, plain]))
        pixels_BCHW = replay(images, pa.concat_arrays([drawn, whole]).take(pa.array(in_order)), contract)
        num_classes = label_of(self.table.schema.field("views")).get("num_classes")
        if num_classes is None:
            return list(pixels_BCHW), None
        probs_BK = np.zeros((len(images), num_classes), np.float32)
        probs_BK[stored] = decode(records.field("soft_label"), num_classes)
        probs_BK[plain, labels_B[plain]] = 1
        return list(pixels_BCHW), torch.from_numpy(probs_BK)

    def _normalised(self, pixels: pa.FixedSizeListArray) -> torch.Tensor:
        """A vector column as float32 [B, C, S, S]; `training` has a mean for each channel."""
        if pixels.null_count:
            raise StoreError("pixels", "are missing in rows of this split", "pass pixels='float', and normalise by the mean and std of `training`")
        told = self._told = self._told or self.training or {}
        channels = len(told["mean"])
        side = math.isqrt(pixels.type.list_size // channels)
        return torch.from_numpy(pixels.flatten().to_numpy().copy()).view(-1, channels, side, side)

    def _tensor(self, pixels_CHW: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(np.ascontiguousarray(pixels_CHW))
        return image if self.pixels == "uint8" else image.float() / 255


def _learnt(soft_labels: pa.FixedSizeListArray, labels: torch.Tensor) -> torch.Tensor:
    """Soft labels float32 [B, K]; a row that has none is sure of its label."""
    probs_BK = torch.nn.functional.one_hot(labels, soft_labels.type.list_size).float()
    has = soft_labels.is_valid().to_numpy(zero_copy_only=False)
    probs_BK[torch.from_numpy(has)] = torch.from_numpy(soft_labels.drop_null().flatten().to_numpy().copy()).view(-1, soft_labels.type.list_size)
    return probs_BK


def _items(images: Sequence[torch.Tensor], labels: torch.Tensor, sample_ids: Sequence[str], soft_labels: torch.Tensor | None) -> list[dict[str, Any]]:
    """A dict for each of B samples."""
    items = [{"image": image, "label": label, "sample_id": sample_id} for image, label, sample_id in zip(images, labels, sample_ids, strict=True)]
    return items if soft_labels is None else [item | {"soft_label": soft_label} for item, soft_label in zip(items, soft_labels, strict=True)]


def loader(
    split: TorchSplit, *, batch_size: int, num_workers: int = 0, shuffle: bool = True, drop_last: bool = False, **more: Any
) -> "DataLoader[dict[str, Any]]":
    """A DataLoader over a split; each pass over it is the next epoch, and `loader.sampler.set_epoch(e)` says which.

    Workers start from a fork server that has loaded torch once, and stay. As with any start
    method but fork, a script needs `if __name__ == "__main__":` around what it runs.

    Args:
        split: what to load; its `set_epoch` names the first epoch.
        more: passed to DataLoader, such as `pin_memory`.
    """
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        more = {"multiprocessing_context": context, "persistent_workers": True} | more
    order = EpochOrder(len(split), seed=split.seed, shuffle=shuffle, epoch=split.epoch)
    return DataLoader(split, batch_size, sampler=order, num_workers=num_workers, drop_last=drop_last, **more)


class EpochOrder(Sampler[Place]):
    """The order of one epoch: a permutation made from (seed, epoch), or rows as they stand.

    Each pass is the next epoch, so that forgetting `set_epoch` repeats no order and no view.
    """

    def __init__(self, rows: int, *, seed: int, shuffle: bool, epoch: int = 0) -> None:
        self.rows, self.seed, self.shuffle, self.epoch = rows, seed, shuffle, epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Place]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return (Place(epoch, row) for row in self._order(epoch).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch."""
        self.epoch = epoch

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rows)
        # Sorting raw Philox words: NumPy keeps the words, not what `permutation` makes of them, over its versions.
        words = Draw(self.seed, "datasets.order").generator("order", epoch).bit_generator.random_raw(self.rows)
        return np.argsort(words, kind="stable")


def _note_read() -> None:
    """Remember which process reads, and refuse a child that was forked from it."""
    global _read_in
    if _read_in not in (None, os.getpid()):
        raise StoreError(
            "split",
            "was read before this process was forked, and Lance isn't fork-safe",
            "use `snapshot.loader(…)`, or DataLoader(multiprocessing_context='forkserver')",
        )
    _read_in = os.getpid()
