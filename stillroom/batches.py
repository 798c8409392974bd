"""What turns rows of a split into what a trainer sees: pixels, labels, soft labels of the views chosen.

The one place where that happens: `TorchSplit` shows a few rows at a time with it, a stream whole batches.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.fields import PIXELS_COLUMN, label_names, pixels_shape
from stillroom.images import ImageFault, decode, resize, with_channels
from stillroom.operators import Table
from stillroom.partners import Partners, mixed_in
from stillroom.soft_labels import decode as decode_labels
from stillroom.tables import one_array
from stillroom.transforms import transforms_of
from stillroom.views import anchor_weights, check_contract, identity_views, label_of, mixes, replay

__all__ = ["Look", "Shown", "Viewer", "note_read"]

# R = rows read, B = what a batch shows of them, C H W = an image, K = classes, S = those that have stored views

# The process that first read any split. Lance's threads don't survive a fork, and its locks may not.
_read_in: int | None = None


@dataclass(frozen=True)
class Look:
    """How rows are shown.

    Args:
        views: "stored" shows stored views with their soft labels, None plain images.
        seed: of the views.
        pixels: "float" (0 to 1), "uint8", or of a distilled set "normalised".
        channels: 1 or 3, where pictures differ in it; None as they are.
        side_px: plain images are resized to this side; None as they are.
        image: the column of images; None takes decoded ones (`image_pixels`) where there are any, else `image`.

    Raises:
        InputError: none of these words; two that exclude each other.
    """

    views: str | None = None
    seed: int = 0
    pixels: str = "float"
    channels: int | None = None
    side_px: int | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        if self.views not in ("stored", None) or self.pixels not in ("float", "uint8", "normalised"):
            raise InputError("split", f"views={self.views!r}, pixels={self.pixels!r}", "views is 'stored' or None, pixels 'float', 'uint8' or 'normalised'")
        if self.views and self.pixels == "normalised":
            raise InputError("split", "views='stored' goes by images of 8 bits, pixels='normalised' has none", "pass one of the two")
        if self.channels not in (1, 3, None):
            raise InputError("split", f"channels={self.channels!r}", "channels is 1, 3 or None")
        if self.side_px is not None and (self.views or self.pixels == "normalised"):
            raise InputError("split", "side_px is for plain images: views and normalised pixels have the side that they were made with", "leave it out")


class Shown(NamedTuple):
    """What B rows show: images, one array where all are alike in shape, labels int64 [B], ids; where there are any, soft labels float32 [B, K].

    Of views that are turned by quarters or permuted in their channels also which transform each shows, int64 [B].
    """

    images: np.ndarray | list[np.ndarray]
    labels_B: np.ndarray
    sample_ids: list[str]
    soft_labels_BK: np.ndarray | None
    transforms_B: np.ndarray | None = None


class Viewer:
    """Reads rows of a table and shows them.

    Args:
        table: a split of a snapshot, or any table with `sample_id`, `image`, `label`.
        look: how rows are shown.
        more: further columns that `take` reads, for whoever calls.

    Raises:
        StoreError: at the first read: what `look` asks for isn't in this table, or this stillroom replays views otherwise.
    """

    def __init__(self, table: Table, look: Look, more: Sequence[str] = ()) -> None:
        self.table, self.look, self.more = table, look, tuple(more)
        self._checked = False
        self._contract: dict[str, Any] | None = None
        self._told: dict[str, Any] | None = None

        self._partners = Partners(table, channels=look.channels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": False, "_contract": None, "_told": None}

    @property
    def training(self) -> dict[str, Any] | None:
        """How nets are to be trained on a distilled set; None of any other."""
        if "training" not in self.table.schema.names:
            return None
        note_read()
        told = (value for batch in self.table.scan(["training"]) for value in batch.column(0).drop_null().to_pylist())
        return json.loads(next(told, "null"))

    def take(self, rows: Sequence[int] | np.ndarray) -> pa.Table:
        """Read what `show` needs of these rows, in the order given."""
        note_read()
        self._check()
        return self.table.take(rows, self._columns())

    def show(self, taken: pa.Table, epochs_R: np.ndarray, each: int = 1) -> Shown:
        """Show rows that `take` read, each as of its epoch.

        In epoch e a row shows its view (o + e) mod V, V views a row, o by its id and the seed: each once before any
        comes again, and not all rows their first view at once. A row without stored views comes as it is, with
        all probability on its label. Views that no teacher labelled have their row's label alone; where they mix, soft
        labels weigh it and the partner's as the images are. Views drawn with a `strength` come in their order, and the last stays.

        Args:
            taken: R rows.
            epochs_R: the epoch of each.
            each: how many views of a row are shown, one after the other: B = R * each.
        """
        sample_ids, images = taken["sample_id"].to_pylist(), None
        if self.look.pixels != "normalised":
            images = self._images(taken, sample_ids)
        turns_B = epochs_R
        if each > 1:
            # Decoded once each, before they are repeated.
            at_B = np.repeat(np.arange(len(sample_ids)), each)
            images = images[at_B] if isinstance(images, np.ndarray) else images and [images[at] for at in at_B]
            taken = taken.drop_columns([self._image_column()]).take(pa.array(at_B))
            sample_ids = [sample_ids[at] for at in at_B]
            turns_B = (epochs_R[:, None] * each + np.arange(each)).ravel()
        labels_B = one_array(taken["label"]).to_numpy(zero_copy_only=False).astype(np.int64)
        soft_labels_BK = _learnt(one_array(taken["soft_label"]), labels_B) if "soft_label" in self._columns() else None
        if images is None:
            images = self._normalised(one_array(taken["pixels"]))
        elif self._contract:
            return self._viewed(images, one_array(taken["views"]), sample_ids, labels_B, turns_B)
        return Shown(images, labels_B, sample_ids, soft_labels_BK)

    def _check(self) -> None:
        """Once in each process: that the table has what is asked for, and the contract of its views."""
        if self._checked:
            return
        names, look = self.table.schema.names, self.look
        if look.views and "views" not in names:
            raise StoreError("views", "are not in this split", "pass views=None for plain images, or build it with reinforce.teacher or reinforce.views")
        if look.pixels == "normalised" and not {"pixels", "training"} <= set(names):
            raise StoreError("pixels", "are not in this split", "pass pixels='float'; distill.tesla and distill.dm store them")
        for name in [*self.more, *([look.image] if look.image else [])]:
            if name not in names:
                raise StoreError(f"column '{name}'", "is not in this split", f"it has {', '.join(names)}")
        self._contract = check_contract(self.table.schema.field("views")) if look.views else None
        self._checked = True

    def _columns(self) -> list[str]:
        names = self.table.schema.names
        shown = "pixels" if self.look.pixels == "normalised" else self._image_column()
        beside = ["views"] if self._contract else ["soft_label"] if "soft_label" in names else []
        return list(dict.fromkeys(["sample_id", shown, "label", *beside, *self.more]))

    def _image_column(self) -> str:
        decoded = PIXELS_COLUMN in self.table.schema.names and pixels_shape(self.table.schema.field(PIXELS_COLUMN))
        return self.look.image or (PIXELS_COLUMN if decoded else "image")

    def _images(self, taken: pa.Table, sample_ids: list[str]) -> np.ndarray | list[np.ndarray]:
        """Pixels uint8 [C, H, W] of B rows, one array where all are alike in shape."""
        look, name = self.look, self._image_column()
        column = one_array(taken[name])
        if shape := pixels_shape(taken.schema.field(name)):
            if column.null_count:
                raise StoreError(f"column '{name}'", "is missing in rows of this split", "pass image='image', and images are decoded")
            start = column.offset * column.type.byte_width
            pixels_BCHW = np.frombuffer(column.buffers()[1], np.uint8)[start:][: len(column) * column.type.byte_width].reshape(-1, *shape)
            pixels_BCHW = with_channels(pixels_BCHW, look.channels)
            return pixels_BCHW if look.side_px is None else resize(pixels_BCHW, look.side_px)
        images = [_decoded(data, sample_id) for data, sample_id in zip(column.to_pylist(), sample_ids, strict=True)]
        if look.channels is not None or look.side_px is not None:
            images = [with_channels(image_CHW[None], look.channels)[0] for image_CHW in images]
            images = images if look.side_px is None else [resize(image_CHW[None], look.side_px)[0] for image_CHW in images]
        if len({image_CHW.shape for image_CHW in images}) != 1:
            return images
        pixels_BCHW = np.empty((len(images), *images[0].shape), np.uint8)  # np.stack would keep the order of axes in memory
        for pixels_CHW, image_CHW in zip(pixels_BCHW, images, strict=True):
            pixels_CHW[...] = image_CHW
        return pixels_BCHW

    def _viewed(self, images: np.ndarray | list[np.ndarray], views: pa.ListArray, sample_ids: list[str], labels_B: np.ndarray, turns_B: np.ndarray) -> Shown:
        """Each row's view at its turn: pixels uint8 [B, C, side, side], soft labels and transforms, if there are any."""
        assert self._contract is not None
        field = self.table.schema.field("views")
        counts_B = views.value_lengths().fill_null(0).to_numpy()
        stored, plain = np.flatnonzero(counts_B), np.flatnonzero(counts_B == 0)
        numbers_S = self._numbers([sample_ids[at] for at in stored], turns_B[stored], counts_B[stored])
        drawn = views.values.take(pa.array(views.offsets.to_numpy()[stored] + numbers_S))
        whole = identity_views(np.array([images[at].shape[1:] for at in plain], np.int64), drawn.type)
        records = pa.concat_arrays([drawn, whole]).take(pa.array(np.argsort(np.concatenate([stored, plain]))))
        pixels_BCHW = replay(images, records, self._contract, mixed_in(sample_ids, records, self._contract, self._partners.fetch))
        num_classes = label_of(field).get("num_classes")
        if num_classes is None:
            mixed_BK = self._mixed_labels(records, sample_ids, labels_B, pixels_BCHW.shape[2:]) if mixes(drawn.type) else None
            return Shown(pixels_BCHW, labels_B, sample_ids, mixed_BK, transforms_of(records))
        probs_BK = np.zeros((len(images), num_classes), np.float32)
        probs_BK[stored] = decode_labels(drawn.field("soft_label"), num_classes)
        probs_BK[plain, labels_B[plain]] = 1
        return Shown(pixels_BCHW, labels_B, sample_ids, probs_BK, transforms_of(records))

    def _numbers(self, sample_ids: list[str], turns_S: np.ndarray, counts_S: np.ndarray) -> np.ndarray:
        """Which of its views each sample shows at its turn, int64 [S]."""
        assert self._contract is not None
        if "strength" in self._contract:
            # Views that grow stronger come in their order, and the last one stays.
            return np.minimum(turns_S, counts_S - 1)
        start = Draw(self.look.seed, "datasets.view")
        first_S = np.array([start.integer(sample_id) % int(count) for sample_id, count in zip(sample_ids, counts_S, strict=True)], np.int64)
        return (first_S + turns_S) % counts_S

    def _mixed_labels(self, views: pa.StructArray, sample_ids: list[str], labels_B: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Hard labels weighted as the images are mixed, float32 [B, K]."""
        names = label_names(self.table.schema)
        if not names:
            raise StoreError("column 'label'", "has no class names, which labels of mixed views need", "declare them at ingest")
        own_B = anchor_weights(views, *size).astype(np.float32)
        probs_BK = np.zeros((len(views), len(names)), np.float32)
        rows = np.arange(len(views))
        probs_BK[rows, labels_B] = own_B
        partners = [partner or sample_id for partner, sample_id in zip(views.field("partner").to_pylist(), sample_ids, strict=True)]
        np.add.at(probs_BK, (rows, self._partners.labels(partners)), 1 - own_B)
        return probs_BK

    def _normalised(self, pixels: pa.FixedSizeListArray) -> np.ndarray:
        """A vector column as float32 [B, C, S, S]; `training` has a mean for each channel."""
        if pixels.null_count:
            raise StoreError("pixels", "are missing in rows of this split", "pass pixels='float', and normalise by the mean and std of `training`")
        told = self._told = self._told or self.training or {}
        channels = len(told["mean"])
        side = math.isqrt(pixels.type.list_size // channels)
        return pixels.flatten().to_numpy().reshape(-1, channels, side, side).copy()


def note_read() -> None:
    """Remember which process reads, and refuse a child that was forked from it.

    Raises:
        StoreError: this is such a child.
    """
    global _read_in
    if _read_in not in (None, os.getpid()):
        raise StoreError(
            "split",
            "was read before this process was forked, and Lance isn't fork-safe",
            "use `snapshot.loader(…)`, `snapshot.stream(…, num_workers=2)`, or DataLoader(multiprocessing_context='forkserver')",
        )
    _read_in = os.getpid()


def _decoded(data: bytes | None, sample_id: str) -> np.ndarray:
    """Pixels uint8 [C, H, W]."""
    try:
        if data is None:
            raise ImageFault("no image")
        return decode(data).transpose(2, 0, 1)
    except ImageFault as fault:
        raise StoreError(f"sample '{sample_id}'", str(fault), "`stillroom verify` says which files are damaged") from fault


def _learnt(soft_labels: pa.FixedSizeListArray, labels_B: np.ndarray) -> np.ndarray:
    """Soft labels float32 [B, K]; a row that has none is sure of its label."""
    has_B = soft_labels.is_valid().to_numpy(zero_copy_only=False)
    probs_BK = np.zeros((len(labels_B), soft_labels.type.list_size), np.float32)
    probs_BK[~has_B, labels_B[~has_B]] = 1
    probs_BK[has_B] = soft_labels.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, probs_BK.shape[1])
    return probs_BK
