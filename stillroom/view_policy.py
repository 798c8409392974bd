"""The policy of views: which kinds are drawn, and how strong."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import pyarrow as pa

from stillroom.kernels.mixing import MIXES
from stillroom.replay import MAGNITUDES, MAX_SIDE_PX
from stillroom.view_fields import VIEW_TYPE, view_type

__all__ = ["DEFAULT_KINDS", "KINDS", "MOST_OPS", "Kind", "ViewPolicy"]

Kind = Literal[
    "identity",
    "crop",
    "flip",
    "affine",
    "quarter_turns",
    "randaugment",
    "jitter",
    "random_field",
    "erase",
    "mixup",
    "cutmix",
    "resizemix",
    "selfmix",
    "permutation",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_KINDS = KINDS[:4]
MIXING = tuple(MIXES[1:])
MOST_OPS = 8


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
        randaugment_ops, randaugment_magnitude: RandAugment's N and M, M on torchvision's scale of 0 to 30.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        hue_deg: largest turn of colours about the grey axis.
        field_px, field_brightness: a random field's largest shift in pixels of the view, and change of brightness as a part.
        erase: how often a box is erased, 0 to 1; erase_scale is its area as a part, erase_ratio its height over width, erase_level
            what it is filled with, 0 to 255.
        mix: how often a view is mixed, 0 to 1, by one of the policy's kinds mixup, cutmix, resizemix, selfmix.
        mix_alpha: of the beta distribution of mixup's and CutMix's weights.
        strength: how strong the first view is and the last, as parts of all of the above; the views between grow evenly. With a
            trainer that shows them in this order, strength follows the epoch.
        side_px: views are resized to this side; None keeps the image's size.

    Raises:
        ValueError: a number outside what can be stored or replayed.
    """

    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    shift_px: float = 0.5
    rotate_deg: float = 8.0
    scale: float = 0.08
    scale_axes: Literal["one", "each"] = "one"
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    jitter: float = 0.4
    hue_deg: float = 18.0
    field_px: float = 1.0
    field_brightness: float = 0.1
    erase: float = 0.25
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    erase_level: int = 128
    mix: float = 0.5
    mix_alpha: float = 1.0
    strength: tuple[float, float] = (1.0, 1.0)
    side_px: int | None = None

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds) or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, each once, not {list(self.kinds)}")
        bounds: dict[str, tuple[float, float]] = {
            "flip": (0, 1),
            "shift_px": (0, 127),
            "rotate_deg": (0, 180),
            "scale": (0, 0.5),
            "randaugment_ops": (1, MOST_OPS),
            "randaugment_magnitude": (0, MAGNITUDES - 1),
            "jitter": (0, 1),
            "hue_deg": (0, 180),
            "field_px": (0, 127),
            "field_brightness": (0, 1),
            "erase": (0, 1),
            "erase_level": (0, 255),
            "mix": (0, 1),
            "mix_alpha": (0.01, 100),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {getattr(self, name)}")
        for name in ("crop_scale", "erase_scale"):
            if not 0 < getattr(self, name)[0] <= getattr(self, name)[1] <= 1:
                raise ValueError(f"{name} must be two parts of the area, 0 < low <= high <= 1, not {list(getattr(self, name))}")
        for name in ("crop_ratio", "erase_ratio"):
            if not 0 < getattr(self, name)[0] <= getattr(self, name)[1]:
                raise ValueError(f"{name} must be two ratios, 0 < low <= high, not {list(getattr(self, name))}")
        if not all(0 <= part <= 1 for part in self.strength):
            raise ValueError(f"strength must be two parts from 0 to 1, not {list(self.strength)}")
        if self.side_px is not None and not 1 <= self.side_px <= MAX_SIDE_PX:
            raise ValueError(f"side_px must be between 1 and {MAX_SIDE_PX}, not {self.side_px}")

    @property
    def mixing(self) -> tuple[str, ...]:
        """Its kinds that mix another image in, or another view."""
        return tuple(kind for kind in self.kinds if kind in MIXING)

    @property
    def stored_kinds(self) -> list[str]:
        """What a view stores: keys of `stillroom.view_fields.VIEW_FIELDS`."""
        return ["crop", *dict.fromkeys("mix" if kind in MIXING else kind for kind in self.kinds if kind not in ("identity", "crop"))]

    @property
    def view_type(self) -> pa.StructType:
        """The struct of one of its views; that of `DEFAULT_KINDS`' fields where it has no further kinds."""
        return VIEW_TYPE if set(self.kinds) <= set(DEFAULT_KINDS) else view_type(self.stored_kinds, self.randaugment_ops)

    def at_strength(self, part: float) -> "ViewPolicy":
        """The same policy, weaker: at 0 no image is changed but in its size, at 1 it is the policy. Fields are scaled where they are drawn."""
        if part == 1:
            # Not by way of 1 - (1 - low), which rounds.
            return self
        return replace(
            self,
            crop_scale=(1 - (1 - self.crop_scale[0]) * part, 1 - (1 - self.crop_scale[1]) * part),
            randaugment_magnitude=round(self.randaugment_magnitude * part),
            **{name: getattr(self, name) * part for name in ("shift_px", "rotate_deg", "scale", "jitter", "hue_deg", "erase", "mix")},
        )
