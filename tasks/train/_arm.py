"""An arm of the proof as its students see it: which image, and what to learn from it, at any step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from stillroom.errors import InputError
from stillroom.images import ImageFault, decode_batch, resize
from stillroom.operators import Draw, Table
from stillroom.partners import Partners, mixed_in
from stillroom.scratch import memory_map
from stillroom.soft_labels import decode
from stillroom.views import check_contract, identity_views, label_of, mixed_columns, replay
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import index_batches

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arm", "load_hard", "load_stored", "weighed"]

# N = samples, V = views of each, B = samples of a batch, C = channels, S = side, K = classes

READ_ROWS = 256
Batches = Callable[[int], "tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class Arm:
    """What students are trained on.

    Args:
        pixels_VNCSS: uint8, memory-mapped; with hard labels the images alone (V = 1).
        targets: gives, for (views int [B], rows int [B]), class indices int64 [B] or probabilities float32 [B, K], times the sample's weight where it has one.
    """

    pixels_VNCSS: np.ndarray
    targets: Callable[[np.ndarray, np.ndarray], np.ndarray]
    label_names: list[str]

    def batches(self, batch_size: int, key: str, draw: Draw) -> Batches:
        """Images and targets of any step: rows in an order of their own each epoch, in epoch e view e mod V."""
        import torch

        views, samples = self.pixels_VNCSS.shape[:2]
        order = index_batches(samples, batch_size, key, draw)

        def batch(step: int) -> "tuple[Tensor, Tensor]":
            rows_B = order(step)
            views_B = np.arange(step * batch_size, (step + 1) * batch_size) // samples % views
            return torch.from_numpy(self.pixels_VNCSS[views_B, rows_B]), torch.from_numpy(self.targets(views_B, rows_B))

        return batch


def load_hard(samples: Table, scratch: Path, side_px: int | None, channels: Literal[1, 3] | None) -> Arm:
    """The images as they are, and their labels."""
    labels_N, names = load_labels(samples)
    pixels_NCSS = load_images(samples, scratch, side_px=side_px, channels=channels)
    return Arm(pixels_NCSS[None], lambda views_B, rows_B: labels_N[rows_B], names)


def load_stored(samples: Table, scratch: Path, side_px: int | None, channels: Literal[1, 3] | None, epochs: int) -> Arm:
    """The first `epochs` stored views of each sample, replayed once, and their soft labels; the sample's own where no teacher gave some.

    A sample with fewer views than others repeats its own; one without any is seen plain and sure of its label, as trainers
    see it. The pixels lie in a file under `scratch`, C S^2 bytes a view; in memory there are one batch and the labels as they are stored.

    Raises:
        StoreError: this stillroom replays otherwise than the one that made the views.
        InputError: no sample has a view, views mix under hard labels, or an image can't be decoded.
    """
    contract = check_contract(samples.schema.field("views"))
    if mixed_columns(samples.schema) and "num_classes" not in label_of(samples.schema.field("views")):
        raise InputError("views", "mix other samples in under hard labels, which students of a proof don't take", "let reinforce.teacher label them")
    column = pa.chunked_array([batch.column(0) for batch in samples.scan(["views"], batch_size=READ_ROWS)], samples.schema.field("views").type).combine_chunks()
    counts_N = np.diff(column.offsets.to_numpy())
    if not counts_N.any():
        raise InputError("views", f"none of {len(counts_N)} samples has one", "reinforce.teacher or reinforce.views gives each some")
    starts_N, structs = column.offsets.to_numpy()[:-1], column.values
    views = min(epochs, int(counts_N.max()))
    pixels_VNCSS: np.ndarray | None = None
    partners = Partners(samples, channels=channels)
    row = 0
    for batch in samples.scan(["sample_id", "image"], batch_size=READ_ROWS):
        images, ids = _decoded(batch["image"], row, channels), batch["sample_id"].to_pylist()
        rows = slice(row, row + len(images))
        for view in range(views):
            shown = _records(structs, view, starts_N[rows], counts_N[rows], images)
            seen_BCSS = _squared(replay(images, shown, contract, mixed_in(ids, shown, contract, partners.fetch)), row, side_px)
            if pixels_VNCSS is None:
                pixels_VNCSS = memory_map(scratch / "views", (views, samples.rows, *seen_BCSS.shape[1:]), np.uint8)
            pixels_VNCSS[view, rows] = seen_BCSS
        row += len(images)
    labels_N, names = load_labels(samples)
    num_classes = label_of(samples.schema.field("views")).get("num_classes")

    def targets(views_B: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        if num_classes is None:
            return labels_N[rows_B]
        has_B = counts_N[rows_B] > 0
        probs_BK = np.zeros((len(rows_B), num_classes), np.float32)
        probs_BK[~has_B, labels_N[rows_B[~has_B]]] = 1
        probs_BK[has_B] = decode(structs.field("soft_label").take(_at(views_B[has_B], starts_N[rows_B[has_B]], counts_N[rows_B[has_B]])), num_classes)
        return probs_BK

    return Arm(pixels_VNCSS, targets, names)  # type: ignore[arg-type]  # there is a row, so there is an array


def weighed(arm: Arm, samples: Table) -> Arm:
    """The same arm, each sample's loss times its `weight`, scaled to a mean of 1; as it is where there is no such column.

    Raises:
        InputError: weights that are null, negative or not finite, or all 0.
    """
    if "weight" not in samples.schema.names:
        return arm
    weight_N = samples.frame(["weight"])["weight"].cast(float).fill_null(float("nan")).to_numpy()
    if not (np.isfinite(weight_N).all() and weight_N.min(initial=0) >= 0 and weight_N.any()):
        raise InputError("weight", "holds null, infinite or negative numbers, or nothing but 0", "prune.facility_location gives weights above 0")
    weight_N = (weight_N / weight_N.mean()).astype(np.float32)
    one_hot_KK = np.eye(len(arm.label_names), dtype=np.float32)

    def targets(views_B: np.ndarray, rows_B: np.ndarray) -> np.ndarray:
        # Cross-entropy is linear in its target, so a target times a number is a loss times it.
        found = arm.targets(views_B, rows_B)
        return (one_hot_KK[found] if found.ndim == 1 else found) * weight_N[rows_B, None]

    return Arm(arm.pixels_VNCSS, targets, arm.label_names)


def _records(structs: pa.StructArray, view: int, starts_B: np.ndarray, counts_B: np.ndarray, images: list[np.ndarray]) -> pa.StructArray:
    """For each of B images, the view of this number; the plain one where it has none."""
    has_B = counts_B > 0
    stored = structs.take(_at(view, starts_B[has_B], counts_B[has_B]))
    plain = identity_views(np.array([image_CHW.shape[1:] for image_CHW, has in zip(images, has_B, strict=True) if not has], np.int64), structs.type)
    order_B = np.argsort(np.concatenate([np.flatnonzero(has_B), np.flatnonzero(~has_B)]))
    return pa.concat_arrays([stored, plain]).take(pa.array(order_B))


def _at(views_B: np.ndarray | int, starts_B: np.ndarray, counts_B: np.ndarray) -> pa.Array:
    """Where each row's view stands among the views of all rows."""
    return pa.array(starts_B + views_B % counts_B, pa.int64())


def _decoded(images: pa.Array, start: int, channels: int | None) -> list[np.ndarray]:
    """Images of any sizes, uint8 [C, H, W] each."""
    decoded = []
    for place, image in enumerate(images):
        try:
            decoded.append(decode_batch([image.as_py()], channels=channels)[0])
        except ImageFault as fault:
            raise InputError("images", f"row {start + place}: {str(fault).removeprefix('row 0: ')}", "filter.decodable removes such rows") from fault
    return decoded


def _squared(seen_BCHW: np.ndarray, start: int, side_px: int | None) -> np.ndarray:
    height, width = seen_BCHW.shape[2:]
    if side_px is None and height != width:
        raise InputError("views", f"of row {start} have {width}x{height} pixels, a square is needed", "give side_px, here or to the stage that drew them")
    return seen_BCHW if side_px is None else resize(seen_BCHW, side_px)
