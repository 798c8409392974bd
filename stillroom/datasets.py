"""The trainer's side in torch: a split as a map-style data set, and a loader whose order is known beforehand.

Which samples come when, and which stored view each shows, depends on (seed, epoch, sample id) alone:
never on workers, batch size or what was read before. An epoch travels to the workers inside the
indices that the loader's sampler gives out, because workers that persist don't see `set_epoch`.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stillroom.batches import Look, Viewer
from stillroom.operators import Table
from stillroom.order import permutation

__all__ = ["EpochOrder", "Place", "TorchSplit", "loader"]

# C H W = an image, K = classes

# Not Lance, which warns whenever a process that has loaded it forks: each worker loads it itself.
PRELOAD = ["torch", "stillroom.datasets"]


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
    - `transform`: int64, with stored views of quarter turns or permuted channels: which one `image` shows, 0 for none,
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
        self.table, self.seed = table, seed
        self.viewer = Viewer(table, Look(views=views, seed=seed, pixels=pixels, channels=channels))
        self.epoch = 0

    def __len__(self) -> int:
        return self.table.rows

    @property
    def training(self) -> dict[str, Any] | None:
        """How nets are to be trained on a distilled set: mean, std, learning_rate, augment, labels, net; None of any other."""
        return self.viewer.training

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        row = place.row if isinstance(place, Place) else place
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split of {len(self)}")  # `for sample in split` ends here
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int | Place]) -> list[dict[str, Any]]:
        """Several samples at once, as DataLoader asks for them; a bare row is shown as of `set_epoch`."""
        asked = [place if isinstance(place, Place) else Place(self.epoch, int(place)) for place in places]
        taken = self.viewer.take([place.row for place in asked])
        shown = self.viewer.show(taken, np.array([place.epoch for place in asked], np.int64))
        parts = {
            "image": [self._tensor(image) for image in shown.images],
            "label": torch.from_numpy(shown.labels_B),
            "sample_id": shown.sample_ids,
        }
        if shown.soft_labels_BK is not None:
            parts["soft_label"] = torch.from_numpy(shown.soft_labels_BK)
        if shown.transforms_B is not None:
            parts["transform"] = torch.from_numpy(shown.transforms_B)
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Show the views of this epoch from now on. A loader's batches carry their own: see `EpochOrder`."""
        self.epoch = epoch

    def _tensor(self, pixels_CHW: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(np.ascontiguousarray(pixels_CHW))
        return image.float() / 255 if self.viewer.look.pixels == "float" else image


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
        rows = permutation(self.rows, self.seed, epoch) if self.shuffle else np.arange(self.rows)
        return (Place(epoch, row) for row in rows.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch."""
        self.epoch = epoch
