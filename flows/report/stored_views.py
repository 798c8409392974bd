"""The stored views of a few samples, replayed for the report, with what their teacher saw in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flows.report.lineage import Source
from flows.report.thumbnails import Picture, data_uri, image_column, pictures, shrink
from stillroom.errors import StoreError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode
from stillroom.kernels.mixing import MIXES
from stillroom.operators import Table
from stillroom.partners import Partners
from stillroom.replay import RANDAUGMENT_OPS
from stillroom.soft_labels import decode as decode_labels
from stillroom.views import check_contract, contract_of, label_of, mixed_in, replay, to_records

__all__ = ["VIEW_PICTURES", "Strip", "View", "Views", "describe", "shown_views", "views_stage"]

# B = views of a sample, K = classes, C H W = an image

SAMPLES, VIEWS, CLASSES = 6, 5, 3
VIEW_PICTURES = SAMPLES * (1 + VIEWS)
# Replaying a view that keeps its image's size takes some 40 bytes a pixel.
_MAX_REPLAY_PIXELS = 4_000_000
_COLUMN = "views"


@dataclass(frozen=True)
class View:
    """One view: its picture (empty where it can't be replayed here), its parameters in words, its likeliest classes."""

    uri: str
    small: bool
    said: str
    classes: list[tuple[str, float]]


@dataclass(frozen=True)
class Strip:
    """A sample with its first views."""

    sample: Picture
    views: list[View]


@dataclass(frozen=True)
class Views:
    """What the report shows of a stage's views: `count` views a sample, `taught` with a teacher's labels; `note` says what is odd."""

    stage: str
    count: int
    strips: list[Strip]
    note: str
    taught: bool


def views_stage(stages: Sequence[dict[str, Any]], splits: Mapping[str, Source], tables: Callable[[str], Table]) -> dict[str, Any] | None:
    """The stage whose views are published, else the last that has some, else None."""
    names = {source.stage for source in splits.values()}
    for stage in sorted(reversed(stages), key=lambda stage: stage["name"] not in names):
        if _has_views(tables(stage["name"]).schema):
            return stage
    return None


def shown_views(stage: dict[str, Any], table: Table, picks: Sequence[int], side_px: int) -> Views:
    """The views of some of the picked samples, those spread over the classes as the picks are."""
    field = table.schema.field(_COLUMN)
    note, contract = "", None
    try:
        contract = check_contract(field)
    except StoreError as error:
        note = f"Not replayed: {error}."
    names = label_names(table.schema) or []
    rows = [picks[index] for index in np.unique(np.linspace(0, len(picks) - 1, min(SAMPLES, len(picks))).round().astype(int))] if picks else []
    strips, most = [], 0
    for row, sample in zip(rows, pictures(table, rows, side_px), strict=True):
        stored = table.take([row], [_COLUMN])[_COLUMN].combine_chunks().flatten()
        most = max(most, len(stored))
        shown, pixels_CHW = stored[:VIEWS], _pixels(table, row)
        seen = [shrink(pixels_HWC, side_px) for pixels_HWC in _replayed(table, row, pixels_CHW, shown, contract)]
        size = None if pixels_CHW is None else pixels_CHW.shape[1:]
        views = [
            View(data_uri(seen[index]) if seen else "", sample.small, describe(view, size), _likeliest(probs_K, names))
            for index, (view, probs_K) in enumerate(zip(to_records(shown), _probs(shown, field), strict=True))
        ]
        strips.append(Strip(sample, views))
    return Views(stage["name"], most, strips, note, "num_classes" in label_of(field))


def describe(view: Mapping[str, Any], size: tuple[int, ...] | None = None) -> str:
    """A view's parameters in words: "crop 6 × 7 at 1, 0; flipped; turned +3.2°"; what it leaves alone isn't said.

    Args:
        view: a view's numbers, as `stillroom.views.to_records` gives them.
        size: height and width of its image, if known: a crop of all of it isn't one.
    """
    said = [] if (view["crop_h"], view["crop_w"]) == size else [f"crop {view['crop_w']} × {view['crop_h']} at {view['crop_x']}, {view['crop_y']}"]
    told = {"scale_x": 10000, "scale_y": 10000, "brightness": 1000, "contrast": 1000, "saturation": 1000} | {k: v for k, v in view.items() if v is not None}
    if told.get("flip"):
        said.append("flipped")
    if told.get("rotate"):
        said.append(f"turned {told['rotate'] / 100:+.1f}°")
    if told["scale_x"] != 10000 or told["scale_y"] != 10000:
        factors = [f"{told[axis] / 10000:.2f}" for axis in ("scale_x", "scale_y")]
        said.append("scaled " + " × ".join(dict.fromkeys(factors)))
    if told.get("shift_x") or told.get("shift_y"):
        said.append(f"shifted {told['shift_x'] / 256:+.2f}, {told['shift_y'] / 256:+.2f} px")
    if told.get("quarter_turns"):
        said.append(f"turned {90 * told['quarter_turns']}°")
    said += [f"{name} {told[name] / 1000:.2f}" for name in ("brightness", "contrast", "saturation") if told[name] != 1000]
    said += [f"hue {told['hue'] / 10:+.0f}°"] if told.get("hue") else []
    said += _ops(told)
    if np.any(told.get("random_field", 0)):
        said.append("random field")
    if told.get("erase_h"):
        said.append(f"erased {told['erase_w']} × {told['erase_h']} at {told['erase_x']}, {told['erase_y']}")
    if told.get("mix"):
        said.append(f"{MIXES[told['mix']]} with {str(told['partner'])[:8] if told.get('partner') else 'its view ' + str(told['partner_view'])}")
    if told.get("permutation"):
        said.append("channels permuted")
    return "; ".join(said).replace("-", "\u2212") or "as it is"


def _ops(told: Mapping[str, Any]) -> list[str]:
    """RandAugment's steps: "rotate -9, posterize 4, equalize"; a magnitude, and which way it goes, where the op has them."""
    said, step = [], 1
    while f"op_{step}" in told:
        name, size = RANDAUGMENT_OPS[told[f"op_{step}"]], told[f"magnitude_{step}"]
        if name in ("posterize", "solarize"):
            name += f" {size // 2}"
        elif name not in ("identity", "autocontrast", "equalize"):
            name += f" {'-' if size % 2 else ''}{size // 2}"
        said += [] if name == "identity" else [name]
        step += 1
    return said


def _has_views(schema: pa.Schema) -> bool:
    if _COLUMN not in schema.names:
        return False
    try:
        return bool(contract_of(schema.field(_COLUMN)) and label_of(schema.field(_COLUMN)))
    except StoreError:  # a user's column of that name
        return False


def _pixels(table: Table, row: int) -> np.ndarray | None:
    image = image_column(table.schema)
    try:
        return decode(table.take([row], [image])[image][0].as_py() or b"").transpose(2, 0, 1) if image else None
    except ImageFault:
        return None


def _replayed(table: Table, row: int, pixels_CHW: np.ndarray | None, views: pa.StructArray, contract: Mapping[str, Any] | None) -> list[np.ndarray]:
    """What the teacher saw in each view, uint8 [H, W, C]; nothing where it can't be replayed here."""
    if pixels_CHW is None or contract is None or (contract["side_px"] is None and pixels_CHW[0].size > _MAX_REPLAY_PIXELS):
        return []
    own = table.take([row], ["sample_id"])["sample_id"].to_pylist() * len(views)
    partners = mixed_in(own, views, contract, Partners(table, _COLUMN).fetch)
    return list(replay(np.repeat(pixels_CHW[None], len(views), axis=0), views, contract, partners).transpose(0, 2, 3, 1))


def _probs(views: pa.StructArray, field: pa.Field) -> np.ndarray:
    """What the teacher said of each view; of no class where there was none."""
    classes = label_of(field).get("num_classes")
    return np.zeros((len(views), 0)) if classes is None else decode_labels(views.field("soft_label"), classes)


def _likeliest(probs_K: np.ndarray, names: Sequence[str]) -> list[tuple[str, float]]:
    order = np.argsort(-probs_K, kind="stable")[:CLASSES]
    return [(names[index] if index < len(names) else f"class {index}", float(probs_K[index])) for index in order]
