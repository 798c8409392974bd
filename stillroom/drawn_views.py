"""Drawing views: the numbers of each, keyed by (seed, operator, sample id, view)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.draws import Draw
from stillroom.kernels.mixing import FULL_WEIGHT, MIXES
from stillroom.replay import RANDAUGMENT_OPS
from stillroom.view_fields import FIELD_GRID, VIEW_TYPE, from_numbers, no_numbers
from stillroom.view_policy import MOST_OPS, ViewPolicy

__all__ = ["Peers", "cell_bounds", "draw_view", "draw_views", "identity_views"]

# B = samples of a batch, V = views a sample, g = cells along a side of a mosaic, T = tries, N = peers

_TRIES = 10
# Each number has its own place, so that a policy that leaves a kind out moves no other kind's numbers.
_FLIP, _SHIFT_Y, _SHIFT_X, _ROTATE, _SCALE_Y, _SCALE_X, _CROP_Y, _CROP_X, _CROP_TRY = range(9)
_CELL = _CROP_TRY + 2 * _TRIES
_PLAIN_NUMBERS = _CELL + 1
_OPS = _PLAIN_NUMBERS
_JITTER = _OPS + 2 * MOST_OPS
_FIELD = _JITTER + 4
_ERASE, _ERASE_Y, _ERASE_X, _ERASE_TRY = range(_FIELD + 3 * FIELD_GRID**2, _FIELD + 3 * FIELD_GRID**2 + 4)
_MIX, _MIX_KIND, _PARTNER, _MIX_WEIGHT, _MIX_Y, _MIX_X, _TURNS, _PERMUTATION = range(_ERASE_TRY + 2 * _TRIES, _ERASE_TRY + 2 * _TRIES + 8)
_NUMBERS = _PERMUTATION + 1
# ResizeMix pastes an image of this part of the side: arXiv 2012.11101.
_PASTED = (0.1, 0.8)


@dataclass(frozen=True)
class Peers:
    """Who may be a partner: the samples of a table, in its order.

    Args:
        sample_ids: N ids.
        groups: for each a group, such as its split; partners are of one's own group. None: all are of one.
    """

    sample_ids: Sequence[str]
    groups: Sequence[Any] | None = None

    @cached_property
    def _places(self) -> tuple[dict[str, tuple[Any, int]], dict[Any, list[int]]]:
        members: dict[Any, list[int]] = {}
        places = {}
        for position, sample_id in enumerate(self.sample_ids):
            group = None if self.groups is None else self.groups[position]
            own = members.setdefault(group, [])
            places[sample_id] = group, len(own)
            own.append(position)
        return places, members

    def row(self, sample_id: str) -> int:
        """Where a sample stands in the table."""
        places, members = self._places
        group, own = places[sample_id]
        return members[group][own]

    def partner(self, sample_id: str, number: float) -> str | None:
        """Another sample of the same group, each as likely, by a number in [0, 1); None where there is no other."""
        places, members = self._places
        group, own = places[sample_id]
        others = len(members[group]) - 1
        if not others:
            return None
        chosen = int(number * others)
        return self.sample_ids[members[group][chosen + (chosen >= own)]]


def draw_views(
    policy: ViewPolicy, sample_ids: Sequence[str], sizes_B2: np.ndarray, draw: Draw, count: int, grids_B: np.ndarray | None = None, peers: Peers | None = None
) -> pa.ListArray:
    """Draw `count` views of each sample; view v of a sample depends on (seed, operator, sample id, v) only, a partner also on the peers.

    A mosaic's view shows one of its cells, each as likely as any other, and the policy shapes that cell as if
    it were the image: a crop lies inside it, and a plain view is all of it. So no view straddles cells.

    Args:
        policy: what to draw.
        sample_ids: B ids.
        sizes_B2: height and width of each image in pixels, int [B, 2].
        draw: the stage's random numbers; the draw's index is the view's.
        count: how many views a sample.
        grids_B: cells along each side of each image, int [B]; 1, and None for all, is a whole image.
        peers: among whom partners are; a policy that mixes needs them.

    Returns:
        list<struct> [B], each of `count` views of `policy.view_type`.

    Raises:
        ValueError: a grid below 1, or of more cells than the image has pixels along a side; no peers where the policy mixes.
    """
    if set(policy.mixing) - {"selfmix"} and peers is None:
        raise ValueError(f"{', '.join(policy.mixing)} mix in other samples, and there are no peers to choose from")
    samples = len(sample_ids)
    sizes_B2, grids_B = _fitting(sample_ids, sizes_B2, grids_B)
    columns = no_numbers(policy.view_type, (samples, count))
    for view in range(count):
        _put(columns, np.s_[:, view], _one_view(policy, sample_ids, sizes_B2, grids_B, draw, view, count, peers))
    flat = {name: values.reshape(samples * count, *values.shape[2:]) for name, values in columns.items()}
    return pa.ListArray.from_arrays(pa.array(np.arange(samples + 1) * count, pa.int32()), from_numbers(flat, policy.view_type))


def draw_view(
    policy: ViewPolicy,
    sample_ids: Sequence[str],
    sizes_B2: np.ndarray,
    draw: Draw,
    views_B: np.ndarray,
    count: int,
    grids_B: np.ndarray | None = None,
    peers: Peers | None = None,
) -> pa.StructArray:
    """One view of each sample, number `views_B` of `count`: the same as in `draw_views`, whose arguments these are. Without peers nothing is mixed in."""
    sizes_B2, grids_B = _fitting(sample_ids, sizes_B2, grids_B)
    columns = no_numbers(policy.view_type, (len(sample_ids),))
    for view in np.unique(views_B).tolist():
        rows = np.flatnonzero(views_B == view)
        ids = [sample_ids[row] for row in rows.tolist()]
        _put(columns, rows, _one_view(policy, ids, sizes_B2[rows], grids_B[rows], draw, view, count, peers))
    return from_numbers(columns, policy.view_type)


def identity_views(sizes_B2: np.ndarray, kind: pa.StructType = VIEW_TYPE) -> pa.StructArray:
    """For each image, the view that changes nothing but the side: [B] of `kind`, whose soft label, if it has one, is null."""
    sizes_B2 = np.asarray(sizes_B2, np.int64).reshape(-1, 2)
    columns = no_numbers(kind, (len(sizes_B2),))
    _put(columns, np.s_[:], _identity(sizes_B2))
    return from_numbers(columns, kind)


def cell_bounds(size_px: Any, grid: Any, index: Any) -> tuple[Any, Any]:
    """Where cell `index` of `grid` cells along an axis of `size_px` pixels starts and stops; whole numbers, or arrays of them.

    Cells leave no gap: where the size doesn't divide, the first ones are a pixel larger.
    """
    small, larger = size_px // grid, size_px % grid
    start = index * small + np.minimum(index, larger)
    return start, start + small + (index < larger)


def _one_view(
    policy: ViewPolicy, sample_ids: Sequence[str], sizes_B2: np.ndarray, grids_B: np.ndarray, draw: Draw, view: int, count: int, peers: Peers | None
) -> dict[str, Any]:
    """View number `view` of each sample: the fields that aren't zero."""
    plain = view == 0 and "identity" in policy.kinds
    if plain and (grids_B == 1).all():
        return _identity(sizes_B2)
    numbers_BN = draw.uniform(sample_ids, _PLAIN_NUMBERS if policy.view_type == VIEW_TYPE else _NUMBERS, view)
    starts_B2, cells_B2 = _cells(sizes_B2, grids_B, numbers_BN[:, _CELL])
    if plain:
        drawn: dict[str, Any] = _identity(cells_B2)
    else:
        first, last = policy.strength
        part = first + (last - first) * view / max(1, count - 1)
        weaker = policy.at_strength(part)
        drawn = _placed(weaker, cells_B2, numbers_BN) | _coloured(weaker, part, numbers_BN)
        shown_B2 = sizes_B2 if policy.side_px is None else np.full_like(sizes_B2, policy.side_px)
        if "erase" in policy.kinds:
            drawn |= _erased(weaker, shown_B2, numbers_BN)
        if policy.mixing:
            drawn |= _mixed(weaker, sample_ids, shown_B2, numbers_BN, view, count, peers)
    return drawn | {"crop_y": drawn["crop_y"] + starts_B2[:, 0], "crop_x": drawn["crop_x"] + starts_B2[:, 1]}


def _fitting(sample_ids: Sequence[str], sizes_B2: np.ndarray, grids_B: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and grids as whole numbers; a grid that doesn't fit its image is refused."""
    sizes_B2 = np.asarray(sizes_B2, np.int64).reshape(len(sample_ids), 2)
    grids_B = np.ones(len(sample_ids), np.int64) if grids_B is None else np.asarray(grids_B, np.int64)
    unfit_B = (grids_B < 1) | (grids_B > sizes_B2.min(axis=1))
    if unfit_B.any():
        at = int(unfit_B.argmax())
        raise ValueError(f"sample '{sample_ids[at]}': a grid of {grids_B[at]} cells a side on {sizes_B2[at, 1]}x{sizes_B2[at, 0]} px")
    return sizes_B2, grids_B


def _put(columns: dict[str, np.ndarray], at: Any, drawn: Mapping[str, Any]) -> None:
    for name in columns.keys() & drawn.keys():
        columns[name][at] = drawn[name]


def _identity(sizes_B2: np.ndarray) -> dict[str, np.ndarray]:
    """The fields whose zero would change an image."""
    zeros, ones, thousand = (np.full(len(sizes_B2), number) for number in (0, 10000, 1000))
    crop = {"crop_y": zeros, "crop_x": zeros, "crop_h": sizes_B2[:, 0], "crop_w": sizes_B2[:, 1]}
    return crop | {"scale_y": ones, "scale_x": ones, "brightness": thousand, "contrast": thousand, "saturation": thousand}


def _placed(policy: ViewPolicy, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    """Crop, flip, affine and quarter turns."""
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
    if "quarter_turns" in policy.kinds:
        view["quarter_turns"] = _whole(numbers_BN[:, _TURNS], 4)
    return view


def _coloured(policy: ViewPolicy, part: float, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    """RandAugment, jitter, random field and permutation."""
    view: dict[str, np.ndarray] = {}
    if "randaugment" in policy.kinds:
        for step in range(policy.randaugment_ops):
            view[f"op_{step + 1}"] = _whole(numbers_BN[:, _OPS + 2 * step], len(RANDAUGMENT_OPS))
            view[f"magnitude_{step + 1}"] = 2 * policy.randaugment_magnitude + (numbers_BN[:, _OPS + 2 * step + 1] < 0.5)
    if "jitter" in policy.kinds:
        for at, name in enumerate(("brightness", "contrast", "saturation")):
            view[name] = 1000 + _around(numbers_BN[:, _JITTER + at], policy.jitter * 1000)
        view["hue"] = _around(numbers_BN[:, _JITTER + 3], policy.hue_deg * 10)
    if "random_field" in policy.kinds:
        from scipy.special import ndtri

        # The contract's px and part stand for 127; a standard deviation is a third of them.
        normal_BG = ndtri(np.clip(numbers_BN[:, _FIELD : _FIELD + 3 * FIELD_GRID**2], 1e-9, 1 - 1e-9)) / 3
        view["random_field"] = np.rint(np.clip(normal_BG, -1, 1) * 127 * part).reshape(-1, FIELD_GRID, FIELD_GRID, 3)
    if "permutation" in policy.kinds:
        view["permutation"] = _whole(numbers_BN[:, _PERMUTATION], 6)
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


def _whole(numbers_B: np.ndarray, count: Any) -> np.ndarray:
    """Uniform whole numbers below `count`."""
    return np.floor(numbers_B * count).astype(np.int64)


def _crops(policy: ViewPolicy, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    """RandomResizedCrop as torchvision draws it: the first of 10 tries that fits, else the largest central crop within the ratios."""
    h, w, found_B = _boxes(policy.crop_scale, policy.crop_ratio, sizes_B2, numbers_BN[:, _CROP_TRY:_CELL])
    height, width = sizes_B2[:, 0], sizes_B2[:, 1]
    # Nothing fitted: the image is much longer one way than the ratios allow.
    central_h = np.minimum(height, np.maximum(np.rint(width / policy.crop_ratio[0]), 1)).astype(np.int64)
    central_w = np.minimum(width, np.maximum(np.rint(height * policy.crop_ratio[1]), 1)).astype(np.int64)
    h, w = np.where(found_B, h, central_h), np.where(found_B, w, central_w)
    y = np.where(found_B, _whole(numbers_BN[:, _CROP_Y], height - h + 1), (height - h) // 2)
    x = np.where(found_B, _whole(numbers_BN[:, _CROP_X], width - w + 1), (width - w) // 2)
    return {"crop_y": y, "crop_x": x, "crop_h": h, "crop_w": w}


def _erased(policy: ViewPolicy, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> dict[str, np.ndarray]:
    """RandomErasing as torchvision draws it; where no box fits in 10 tries, nothing is erased."""
    # Its ratio is height over width.
    w, h, found_B = _boxes(policy.erase_scale, policy.erase_ratio, sizes_B2[:, ::-1], numbers_BN[:, _ERASE_TRY : _ERASE_TRY + 2 * _TRIES])
    does_B = found_B & (numbers_BN[:, _ERASE] < policy.erase) & (h < sizes_B2[:, 0]) & (w < sizes_B2[:, 1])
    y, x = _whole(numbers_BN[:, _ERASE_Y], sizes_B2[:, 0] - h + 1), _whole(numbers_BN[:, _ERASE_X], sizes_B2[:, 1] - w + 1)
    return {f"erase_{name}": np.where(does_B, values, 0) for name, values in zip("yxhw", (y, x, h, w), strict=True)}


def _boxes(scale: tuple[float, float], ratio: tuple[float, float], sizes_B2: np.ndarray, numbers_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height and width of the first of 10 tries that fits each image, and whether one did; ratios are width over height."""
    height_B1, width_B1 = sizes_B2[:, :1], sizes_B2[:, 1:]
    tries_B2T = numbers_BM.reshape(-1, 2, _TRIES)
    low, high = scale
    area_BT = (low + (high - low) * tries_B2T[:, 0]) * (height_B1 * width_B1)
    low, high = np.log(ratio)
    ratio_BT = np.exp(low + (high - low) * tries_B2T[:, 1])
    h_BT, w_BT = np.rint(np.sqrt(area_BT / ratio_BT)).astype(np.int64), np.rint(np.sqrt(area_BT * ratio_BT)).astype(np.int64)
    fits_BT = (h_BT >= 1) & (w_BT >= 1) & (h_BT <= height_B1) & (w_BT <= width_B1)
    first_B, rows = fits_BT.argmax(axis=1), np.arange(len(fits_BT))
    return h_BT[rows, first_B], w_BT[rows, first_B], fits_BT[rows, first_B]


def _mixed(
    policy: ViewPolicy, sample_ids: Sequence[str], sizes_B2: np.ndarray, numbers_BN: np.ndarray, view: int, count: int, peers: Peers | None
) -> dict[str, Any]:
    """Who is mixed in, how much and where; each of the policy's mixing kinds as often."""
    kind_B = np.array([MIXES.index(kind) for kind in policy.mixing])[_whole(numbers_BN[:, _MIX_KIND], len(policy.mixing))]
    kind_B = np.where(numbers_BN[:, _MIX] < policy.mix, kind_B, 0)
    partners: list[str | None] = [None] * len(sample_ids)
    other_B = np.full(len(sample_ids), view)
    for row in np.flatnonzero(kind_B).tolist():
        if kind_B[row] == MIXES.index("selfmix"):
            if count == 1:
                kind_B[row] = 0
            else:
                chosen = int(numbers_BN[row, _PARTNER] * (count - 1))
                other_B[row] = chosen + (chosen >= view)
        else:
            partners[row] = peers.partner(sample_ids[row], numbers_BN[row, _PARTNER]) if peers else None
            kind_B[row] *= partners[row] is not None
    weight_B, box_B4 = _shares(policy, kind_B, sizes_B2, numbers_BN)
    blended_B = kind_B == MIXES.index("mixup")
    boxed_B = (kind_B > 0) & ~blended_B
    found = {"mix": kind_B, "partner": partners, "partner_view": np.where(kind_B > 0, other_B, 0), "mix_weight": np.where(blended_B, weight_B, 0)}
    return found | {f"mix_{name}": np.where(boxed_B, values, 0) for name, values in zip("yxhw", box_B4.T, strict=True)}


def _shares(policy: ViewPolicy, kind_B: np.ndarray, sizes_B2: np.ndarray, numbers_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mixup's weight of the sample itself, in 1/65535, and the box (y, x, height, width) of the others, int [B, 4]."""
    from scipy.special import betaincinv

    own_B = betaincinv(policy.mix_alpha, policy.mix_alpha, numbers_BN[:, _MIX_WEIGHT])
    # The larger share is the sample's own: a view is of its sample.
    weight_B = np.rint(np.maximum(own_B, 1 - own_B) * FULL_WEIGHT).astype(np.int64)
    height_B, width_B = sizes_B2.T
    # CutMix: a box of 1 - own of the area around a uniform centre, clipped (arXiv 1905.04899); the clipped box says what counts.
    h_B, w_B = (np.floor(size_B * np.sqrt(1 - own_B)).astype(np.int64) for size_B in (height_B, width_B))
    y_B, x_B = _whole(numbers_BN[:, _MIX_Y], height_B) - h_B // 2, _whole(numbers_BN[:, _MIX_X], width_B) - w_B // 2
    low_y, low_x = np.maximum(y_B, 0), np.maximum(x_B, 0)
    cut = np.stack([low_y, low_x, np.minimum(y_B + h_B, height_B) - low_y, np.minimum(x_B + w_B, width_B) - low_x], axis=1)
    # ResizeMix: the whole partner at a uniform size, wholly inside.
    part_B = _PASTED[0] + (_PASTED[1] - _PASTED[0]) * numbers_BN[:, _MIX_WEIGHT]
    h_B, w_B = (np.maximum(np.rint(size_B * part_B), 1).astype(np.int64) for size_B in (height_B, width_B))
    pasted = np.stack([_whole(numbers_BN[:, _MIX_Y], height_B - h_B + 1), _whole(numbers_BN[:, _MIX_X], width_B - w_B + 1), h_B, w_B], axis=1)
    return weight_B, np.where((kind_B == MIXES.index("resizemix"))[:, None], pasted, cut)
