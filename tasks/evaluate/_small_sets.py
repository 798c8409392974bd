"""Small sets of images to train on: as a table brings them, or chosen from the real ones in equal number."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.operators import Draw, Table
from stillroom.views import ViewPolicy, check_contract, draw_views, replay, view_contract
from tasks.coverage import herded, k_medoids
from tasks.nets.dsa import DsaOp, apply_dsa, draw_dsa
from tasks.nets.recipe import epoch_batches
from tasks.nets.samples import decode_squares, load_images, load_labels
from tasks.nets.training import normalise
from tasks.nets.whitening import Whitening

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BASELINES", "Baseline", "SmallSet", "Told", "chosen", "load_set", "told_by"]

# N = samples, P = images that they are among, B = those of a batch, V = views, C S = channels and side, K = classes, D = numbers of a vector

Baseline = Literal["random", "herding", "k_medoids"]
BASELINES: tuple[Baseline, ...] = ("random", "herding", "k_medoids")
EXACT_ROWS = 6000  # of a class: k-medoids then holds 4 · 6000² bytes
# RandomResizedCrop and a flip, as the benchmark of PCA augments.
CROPS = ViewPolicy(kinds=("crop", "flip"), crop_scale=(0.08, 1.0))


@dataclass(frozen=True)
class Told:
    """What a table says of itself, as far as training on it, or on real samples in its place, needs to know.

    Args:
        counts: samples of each class, by its name.
        training: what distillation left to its trainer; empty for real samples.
        soft: whether there are soft labels.
        exact: whether images are there without the loss of 8 bits.
    """

    counts: Mapping[str, int]
    side_px: int
    channels: int
    training: Mapping[str, Any]
    soft: bool
    exact: bool


@dataclass(frozen=True)
class SmallSet:
    """N samples to train on, in the order of their ids.

    Args:
        pixels_PCSS: uint8, or float32 where they are normalised already; sample n is at `rows_N[n]`.
        soft_NK: probabilities, where labels are soft.
        views_NV: stored views, to be shown in turn in place of crops that are drawn.
        grids_N: cells along each side of a mosaic, inside which a crop stays.
    """

    pixels_PCSS: np.ndarray
    rows_N: np.ndarray
    labels_N: np.ndarray
    label_names: list[str]
    sample_ids: list[str]
    soft_NK: np.ndarray | None = None
    views_NV: pa.ListArray | None = None
    contract: Mapping[str, Any] = field(default_factory=dict)
    grids_N: np.ndarray | None = None

    @property
    def shape(self) -> dict[str, int]:
        """What `zoo.build` wants to know."""
        side_px = self.contract.get("side_px") or self.pixels_PCSS.shape[2]
        return {"num_classes": len(self.label_names), "channels": self.pixels_PCSS.shape[1], "side_px": side_px}

    def batches(
        self, batch_size: int, seed: int, draw: Draw, mean: Sequence[float], std: Sequence[float], augment: "Sequence[DsaOp] | Literal['crops']", *, soft: bool
    ) -> "Callable[[int], tuple[Tensor, Tensor]]":
        """Normalised, augmented images and targets of any step, as `training.fit` takes them."""
        import torch

        order = epoch_batches(len(self.labels_N), batch_size, f"order/{seed}", draw)
        targets = torch.from_numpy(self.soft_NK if soft and self.soft_NK is not None else self.labels_N)

        def batch(step: int) -> "tuple[Tensor, Tensor]":
            epoch, rows_B = order(step)
            pixels_BCSS = np.asarray(self.pixels_PCSS[self.rows_N[rows_B]])
            if augment == "crops":
                pixels_BCSS = self._cropped(pixels_BCSS, rows_B, epoch, seed, draw)
            elif self.contract.get("side_px"):
                raise InputError("views", f"are of {self.contract['side_px']} px, the images of {self.pixels_PCSS.shape[2]}", "let views keep the images' size")
            images = normalise(torch.from_numpy(pixels_BCSS), mean, std)
            if augment and augment != "crops":
                images = apply_dsa(images, draw_dsa(augment, draw.integer(f"augment/{seed}/{step}"), len(images)))
            return images, targets[rows_B]

        return batch

    def _cropped(self, pixels_BCSS: np.ndarray, rows_B: np.ndarray, epoch: int, seed: int, draw: Draw) -> np.ndarray:
        if self.views_NV is not None:
            starts, stops = (self.views_NV.offsets.to_numpy()[rows_B + place].astype(np.int64) for place in (0, 1))
            return replay(pixels_BCSS, self.views_NV.values.take(pa.array(starts + epoch % (stops - starts))), self.contract)
        keys = [f"{self.sample_ids[row]}/{seed}/{epoch}" for row in rows_B]
        sizes_B2 = np.full((len(rows_B), 2), pixels_BCSS.shape[2])
        grids = {} if self.grids_N is None else {"grids_B": self.grids_N[rows_B]}
        return replay(pixels_BCSS, draw_views(CROPS, keys, sizes_B2, draw, 1, **grids).values, view_contract(CROPS))


def told_by(name: str, table: Table, side_px: int | None, channels: int | None) -> Told:
    """Read what a set says of itself: labels, the size of its first image, and its column `training`.

    Raises:
        InputError: it is empty, misses a class, or its rows tell different things.
    """
    called = f"from.{name}"
    labels_N, names = load_labels(table)
    counts_K = np.bincount(labels_N, minlength=len(names))
    if not counts_K.all():
        raise InputError(called, f"has no image of class '{names[int(counts_K.argmin())]}'", "a net that never saw a class can't be judged on it")
    pixels_1CSS = decode_squares(table.take([0], ["image"])["image"].combine_chunks(), 0, side_px=side_px, channels=channels)
    has = set(table.schema.names)
    training: dict[str, Any] = {}
    if "training" in has:
        said = table.frame(["training"])["training"].unique().to_list()
        if len(said) != 1 or said[0] is None:
            raise InputError(called, f"its rows tell {len(said)} different ways of training", "judge each set apart")
        training = json.loads(said[0])
    size = {"channels": pixels_1CSS.shape[1], "side_px": pixels_1CSS.shape[2]}
    if "pixels" in has and table.schema.field("pixels").type.list_size != size["channels"] * size["side_px"] ** 2:
        numbers, shape = table.schema.field("pixels").type.list_size, f"{size['channels']} x {size['side_px']} x {size['side_px']}"
        raise InputError(called, f"has {numbers} numbers in `pixels`, its images are {shape}", "leave side_px and channels as they were distilled")
    if "soft_label" in has and table.schema.field("soft_label").type.list_size != len(names):
        raise InputError(called, f"has soft labels of {table.schema.field('soft_label').type.list_size} classes, not {len(names)}")
    counts = dict(zip(names, counts_K.tolist(), strict=True))
    return Told(counts, **size, training=training, soft="soft_label" in has, exact="pixels" in has)


def load_set(table: Table, told: Told, scratch: Path, *, exact: bool, whitening: Whitening | None = None) -> SmallSet:
    """Read a set: its `pixels` where `exact`, else its images of 8 bits, whitened where that is given.

    Raises:
        InputError: images can't be decoded or differ; soft labels that are no probabilities; a sample without views.
    """
    frame = table.frame([name for name in ("sample_id", "soft_label", "mosaic_grid") if name in table.schema.names])
    order_N = frame["sample_id"].arg_sort().to_numpy()
    labels_N, names = load_labels(table)
    if exact:
        pixels_NCSS = np.array(table.vectors("pixels"), np.float32).reshape(-1, told.channels, told.side_px, told.side_px)
    else:
        pixels_NCSS = load_images(table, scratch, side_px=told.side_px, channels=told.channels, name="set", whitening=whitening)
    more: dict[str, Any] = {}
    if told.soft:
        soft_NK = np.stack(frame["soft_label"].to_numpy()).astype(np.float32)
        if not (np.isfinite(soft_NK).all() and (soft_NK >= 0).all() and np.allclose(soft_NK.sum(1), 1, atol=1e-3)):
            raise InputError("soft_label", "holds rows that are no probabilities", "each must sum to 1")
        more["soft_NK"] = soft_NK[order_N]
    if "views" in table.schema.names:
        views = pa.chunked_array([batch.column(0) for batch in table.scan(["views"])], table.schema.field("views").type).combine_chunks()
        more["views_NV"], more["contract"] = views.take(pa.array(order_N)), check_contract(table.schema.field("views"))
        if not np.diff(more["views_NV"].offsets.to_numpy()).all():
            raise InputError("views", "of some samples are none", "reinforce.views gives every sample some")
    elif "mosaic_grid" in frame.columns:
        more["grids_N"] = frame["mosaic_grid"].fill_null(1).to_numpy()[order_N]
    return SmallSet(pixels_NCSS, order_N, labels_N[order_N], names, frame["sample_id"].gather(order_N).to_list(), **more)


def chosen(arm: Baseline, real: Table, pixels_NCSS: np.ndarray, counts: Mapping[str, int], draw: Draw, seed: int, vectors: str | None) -> np.ndarray:
    """Positions of as many real samples of each class as a set has, in the order of their ids; int64 [n].

    `random` is another choice for each seed, so that an interval over seeds is one over choices. Herding and
    k-medoids go by the column `vectors`, or by the pixels; ties by sample id.

    Raises:
        InputError: a class that isn't there, or has fewer samples.
    """
    ids = real.frame(["sample_id"])["sample_id"]
    labels_N, _ = load_labels(real)
    names = label_names(real.schema) or [str(label) for label in range(int(labels_N.max()) + 1)]
    vectors_ND = real.vectors(vectors) if vectors else pixels_NCSS.reshape(len(pixels_NCSS), -1)
    found = []
    for name, count in counts.items():
        rows = np.flatnonzero(labels_N == names.index(name)) if name in names else np.zeros(0, np.int64)
        if len(rows) < count:
            raise InputError("from.real", f"has {len(rows)} samples of class '{name}', the set has {count}", "give the samples that it was made from")
        rows = rows[ids.gather(rows).arg_sort().to_numpy()]
        # Herding needs no draw; the others meet rows in an order of their own.
        drawn = rows if arm == "herding" else rows[draw.order(ids.gather(rows), seed)]
        if arm == "random":
            found.append(drawn[:count])
            continue
        drawn_ND = np.asarray(vectors_ND[drawn])
        if not np.isfinite(drawn_ND).all():
            raise InputError("vectors", f"'{vectors}' of class '{name}' holds NaN or infinity", "drop such samples before this stage")
        places = herded(drawn_ND, count) if arm == "herding" else k_medoids(drawn_ND, count, draw.generator(f"class {name}"), EXACT_ROWS).medoids
        found.append(drawn[places])
    rows = np.concatenate(found)
    return rows[ids.gather(rows).arg_sort().to_numpy()]
