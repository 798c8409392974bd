"""Views: the augmentations of a sample that are stored as numbers, drawn once and replayed for ever.

`draw_views` makes the numbers, `stillroom.replay` turns them into pixels, and the field of a column of
views carries the contract between the two: kernel version, order, interpolation, side, label. Its probe
digest tells whether the stillroom that reads still replays as the one that wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from stillroom.digests import canonical_json
from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.replay import KERNEL, MAX_SIDE_PX, VIEW_TYPE, probe_digest, replay

__all__ = [
    "KINDS",
    "MOSAIC_GRID",
    "VIEW_TYPE",
    "Kind",
    "ViewPolicy",
    "cell_bounds",
    "check_contract",
    "contract_of",
    "draw_views",
    "identity_views",
    "label_of",
    "probe_digest",
    "replay",
    "view_contract",
    "views_field",
]

# B = samples of a batch, V = views a sample, g = cells along a side of a mosaic

Kind = Literal["identity", "crop", "flip", "affine"]
KINDS: tuple[Kind, ...] = ("identity", "crop", "flip", "affine")
CONTRACT, PROBE, LABEL = b"stillroom.views", b"stillroom.views_probe", b"stillroom.views_label"
# The column that says of a row how many whole images stand along each side of its image; null or 1: it is one image.
MOSAIC_GRID = "mosaic_grid"
HARD_LABEL = {"kind": "hard"}

_CROP_TRIES = 10
# Each number has its own place, so that a policy that leaves a kind out moves no other kind's numbers.
_FLIP, _SHIFT_Y, _SHIFT_X, _ROTATE, _SCALE_Y, _SCALE_X, _CROP_Y, _CROP_X, _CROP_TRY = range(9)
_CELL = _CROP_TRY + 2 * _CROP_TRIES
_NUMBERS = _CELL + 1


@dataclass(frozen=True)
class ViewPolicy:
    """Which views are drawn, and how strong.

    Args:
        kinds: of `KINDS`; "identity" makes view 0 the plain image, the others apply to all further views.
        crop_scale: area of a crop as a part of the image's (of a mosaic: its cell's), lowest and highest.
        crop_ratio: width over height of a crop, lowest and highest; logarithms are uniform between.
        flip: how often left and right are swapped, 0 to 1.
        shift_px: largest shift along each axis, in pixels of the view.
        rotate_deg: largest rotation to either side.
        scale: largest change of size: 0.08 draws factors from 0.92 to 1.08.
        scale_axes: whether both axes share one factor, or each has its own.
        side_px: views are resized to this side; None keeps the image's size.

    Raises:
        ValueError: a number outside what can be stored or replayed.
    """

    kinds: tuple[Kind, ...] = KINDS
    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    shift_px: float = 0.5
    rotate_deg: float = 8.0
    scale: float = 0.08
    scale_axes: Literal["one", "each"] = "one"
    side_px: int | None = None

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds) or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, each once, not {list(self.kinds)}")
        for name, low, high in (("flip", 0, 1), ("shift_px", 0, 127), ("rotate_deg", 0, 180), ("scale", 0, 0.5)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {getattr(self, name)}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two parts of the area, 0 < low <= high <= 1, not {list(self.crop_scale)}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be two ratios, 0 < low <= high, not {list(self.crop_ratio)}")
        if self.side_px is not None and not 1 <= self.side_px <= MAX_SIDE_PX:
            raise ValueError(f"side_px must be between 1 and {MAX_SIDE_PX}, not {self.side_px}")


def draw_views(policy: ViewPolicy, sample_ids: Sequence[str], sizes_B2: np.ndarray, draw: Draw, count: int, grids_B: np.ndarray | None = None) -> pa.ListArray:
    """Draw `count` views of each sample; view v of a sample depends on (seed, operator, sample id, v) only.

    A mosaic's view shows one of its cells, each as likely as any other, and the policy shapes that cell as if
    it were the image: a crop lies inside it, and a plain view is all of it. So no view straddles cells.

    Args:
        policy: what to draw.
        sample_ids: B ids.
        sizes_B2: height and width of each image in pixels, int [B, 2].
        draw: the stage's random numbers; the draw's index is the view's.
        count: how many views a sample.
        grids_B: cells along each side of each image, int [B]; 1, and None for all, is a whole image.

    Returns:
        list<VIEW_TYPE> [B], each of `count` views.

    Raises:
        ValueError: a grid below 1, or of more cells than the image has pixels along a side.
    """
    samples = len(sample_ids)
    sizes_B2 = np.asarray(sizes_B2, np.int64).reshape(samples, 2)
    grids_B = np.ones(samples, np.int64) if grids_B is None else np.asarray(grids_B, np.int64)
    unfit_B = (grids_B < 1) | (grids_B > sizes_B2.min(axis=1))
    if unfit_B.any():
        at = int(unfit_B.argmax())
        raise ValueError(f"sample '{sample_ids[at]}': a grid of {grids_B[at]} cells a side on {sizes_B2[at, 1]}x{sizes_B2[at, 0]} px")
    columns = {field.name: np.zeros((samples, count), np.int64) for field in VIEW_TYPE}
    for view in range(count):
        plain = view == 0 and "identity" in policy.kinds
        if plain and (grids_B == 1).all():
            drawn = _identity(sizes_B2)
        else:
            numbers_BN = draw.uniform(sample_ids, _NUMBERS, view)
            starts_B2, cells_B2 = _cells(sizes_B2, grids_B, numbers_BN[:, _CELL])
            drawn = _identity(cells_B2) if plain else _drawn(policy, cells_B2, numbers_BN)
            drawn |= {"crop_y": drawn["crop_y"] + starts_B2[:, 0], "crop_x": drawn["crop_x"] + starts_B2[:, 1]}
        for name, values in drawn.items():
            columns[name][:, view] = values
    flat = _structs({name: values.ravel() for name, values in columns.items()})
    return pa.ListArray.from_arrays(pa.array(np.arange(samples + 1) * count, pa.int32()), flat)


def cell_bounds(size_px: Any, grid: Any, index: Any) -> tuple[Any, Any]:
    """Where cell `index` of `grid` cells along an axis of `size_px` pixels starts and stops; whole numbers, or arrays of them.

    Cells leave no gap: where the size doesn't divide, the first ones are a pixel larger.
    """
    small, larger = size_px // grid, size_px % grid
    start = index * small + np.minimum(index, larger)
    return start, start + small + (index < larger)


def identity_views(sizes_B2: np.ndarray) -> pa.StructArray:
    """For each image, the view that changes nothing but the side: VIEW_TYPE [B]."""
    return _structs(_identity(np.asarray(sizes_B2, np.int64).reshape(-1, 2)))


def view_contract(policy: ViewPolicy) -> dict[str, Any]:
    """What a reader must know to replay: plain JSON. The policy is in it to be read by people."""
    return {
        "kernel": KERNEL,
        "side_px": policy.side_px,
        "order": ["crop", "resize", "flip", "affine"],
        "interpolation": "triangle filter (resize), bilinear (affine), fixed point, edges repeated",
        "units": {"crop": "px", "shift": "1/256 px", "rotate": "1/100 degree counter-clockwise", "scale": "1/10000"},
        "policy": {
            "kinds": [kind for kind in KINDS if kind in policy.kinds],
            "crop_scale": list(policy.crop_scale),
            "crop_ratio": list(policy.crop_ratio),
            "flip": policy.flip,
            "shift_px": policy.shift_px,
            "rotate_deg": policy.rotate_deg,
            "scale": policy.scale,
            "scale_axes": policy.scale_axes,
        },
    }


def views_field(contract: Mapping[str, Any], label_type: pa.DataType | None = None, label: Mapping[str, Any] = HARD_LABEL, name: str = "views") -> pa.Field:
    """A column of views: list<struct<view parameters, soft_label>>, with contract, probe digest and label kind as metadata.

    Without a `label_type` the views have no `soft_label`: each has its row's own label.
    """
    view = pa.struct([*VIEW_TYPE, pa.field("soft_label", label_type)]) if label_type else VIEW_TYPE
    metadata = {CONTRACT: canonical_json(contract), PROBE: probe_digest(contract).encode(), LABEL: canonical_json(label)}
    return pa.field(name, pa.list_(view), metadata=metadata)


def contract_of(field: pa.Field) -> dict[str, Any]:
    """The contract of a column of views.

    Raises:
        StoreError: the field carries none.
    """
    return _metadata(field, CONTRACT)


def label_of(field: pa.Field) -> dict[str, Any]:
    """What the labels of a column of views are: `num_classes`, `top_k`, `temperature` of soft ones, `kind: hard` where a view has its row's own.

    Raises:
        StoreError: the field carries no label kind.
    """
    return _metadata(field, LABEL)


def check_contract(field: pa.Field) -> dict[str, Any]:
    """The contract of a column of views, once it is sure that this stillroom replays as the one that wrote them.

    Raises:
        StoreError: it doesn't.
    """
    contract = contract_of(field)
    stored, found = (field.metadata or {}).get(PROBE, b"").decode(), probe_digest(contract)
    if found != stored:
        raise StoreError(
            f"column '{field.name}'",
            f"replays otherwise than when it was made (probe {found[:12]}, stored {stored[:12]})",
            "use the stillroom that made it, or build it again",
        )
    return contract


def _metadata(field: pa.Field, key: bytes) -> dict[str, Any]:
    raw = (field.metadata or {}).get(key)
    if raw is None:
        raise StoreError(f"column '{field.name}'", f"lacks {key.decode()} in its metadata", "it is not a column of views")
    return dict(json.loads(raw))


def _structs(columns: Mapping[str, np.ndarray]) -> pa.StructArray:
    arrays = [pa.array(columns[field.name].astype(field.type.to_pandas_dtype()), field.type) for field in VIEW_TYPE]
    return pa.StructArray.from_arrays(arrays, fields=list(VIEW_TYPE))


def _identity(sizes_B2: np.ndarray) -> dict[str, np.ndarray]:
    zeros, ones = np.zeros(len(sizes_B2), np.int64), np.full(len(sizes_B2), 10000)
    crop = {"crop_y": zeros, "crop_x": zeros, "crop_h": sizes_B2[:, 0], "crop_w": sizes_B2[:, 1]}
    return crop | {"flip": zeros, "shift_y": zeros, "shift_x": zeros, "rotate": zeros, "scale_y": ones, "scale_x": ones}


def _drawn(policy: ViewPolicy, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    view = _identity(sizes_B2)
    if "crop" in policy.kinds:
        view |= _crops(policy, sizes_B2, numbers_BN)
    if "flip" in policy.kinds:
        view["flip"] = numbers_BN[:, _FLIP] < policy.flip
    if "affine" in policy.kinds:
        scale_x = _SCALE_Y if policy.scale_axes == "one" else _SCALE_X
        view["shift_y"] = _around(numbers_BN[:, _SHIFT_Y], policy.shift_px * 256)
        view["shift_x"] = _around(numbers_BN[:, _SHIFT_X], policy.shift_px * 256)
        view["rotate"] = _around(numbers_BN[:, _ROTATE], policy.rotate_deg * 100)
        view["scale_y"] = 10000 + _around(numbers_BN[:, _SCALE_Y], policy.scale * 10000)
        view["scale_x"] = 10000 + _around(numbers_BN[:, scale_x], policy.scale * 10000)
    return view


def _cells(sizes_B2: np.ndarray, grids_B: np.ndarray, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cell of each image, all as likely: where it starts and how large it is, y and x, int [B, 2]."""
    cell_B = np.floor(numbers_B * grids_B**2).astype(np.int64)
    at_B2 = np.stack([cell_B // grids_B, cell_B % grids_B], axis=1)
    starts_B2, stops_B2 = cell_bounds(sizes_B2, grids_B[:, None], at_B2)
    return starts_B2, stops_B2 - starts_B2


def _around(numbers_B: np.ndarray, largest: float) -> np.ndarray:
    """Uniform whole numbers from -largest to largest."""
    return np.rint((2 * numbers_B - 1) * largest).astype(np.int64)


def _crops(policy: ViewPolicy, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    """RandomResizedCrop as torchvision draws it: the first of 10 tries that fits, else the largest central crop within the ratios."""
    height_B1, width_B1 = sizes_B2[:, :1], sizes_B2[:, 1:]
    tries_B2T = numbers_BN[:, _CROP_TRY:_CELL].reshape(-1, 2, _CROP_TRIES)
    low, high = policy.crop_scale
    area_BT = (low + (high - low) * tries_B2T[:, 0]) * (height_B1 * width_B1)
    low, high = np.log(policy.crop_ratio)
    ratio_BT = np.exp(low + (high - low) * tries_B2T[:, 1])
    h_BT, w_BT = np.rint(np.sqrt(area_BT / ratio_BT)).astype(np.int64), np.rint(np.sqrt(area_BT * ratio_BT)).astype(np.int64)
    fits_BT = (h_BT >= 1) & (w_BT >= 1) & (h_BT <= height_B1) & (w_BT <= width_B1)
    first_B = fits_BT.argmax(axis=1)
    rows = np.arange(len(first_B))
    found_B = fits_BT[rows, first_B]
    height, width = sizes_B2[:, 0], sizes_B2[:, 1]
    # Nothing fitted: the image is much longer one way than the ratios allow.
    central_h = np.minimum(height, np.maximum(np.rint(width / policy.crop_ratio[0]), 1)).astype(np.int64)
    central_w = np.minimum(width, np.maximum(np.rint(height * policy.crop_ratio[1]), 1)).astype(np.int64)
    h = np.where(found_B, h_BT[rows, first_B], central_h)
    w = np.where(found_B, w_BT[rows, first_B], central_w)
    y = np.where(found_B, np.floor(numbers_BN[:, _CROP_Y] * (height - h + 1)), (height - h) // 2).astype(np.int64)
    x = np.where(found_B, np.floor(numbers_BN[:, _CROP_X] * (width - w + 1)), (width - w) // 2).astype(np.int64)
    return {"crop_y": y, "crop_x": x, "crop_h": h, "crop_w": w}
