"""reinforce.teacher: store views of each sample with the teacher's soft label for each view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.errors import InputError, StageError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Draw, Input, Params, Rows, Table, Work, row
from stillroom.soft_labels import encode, soft_label_type
from stillroom.views import KINDS, Kind, ViewPolicy, draw_views, replay, view_contract, views_field

if TYPE_CHECKING:
    from tasks.nets.models import Classifier

# B = rows of a batch, V = views a row, C H W = an image, K = classes

CHECKED_ROWS = 2000


class Views(Params):
    """Which views are drawn, and how many."""

    count: int = Field(default=8, ge=1, le=1024, description="Views a sample. Training for e epochs sees each about e / count times.")
    policy: tuple[Kind, ...] = Field(default=KINDS, description="Of identity (makes view 0 the plain image), crop, flip, affine (shape all further ones).")
    crop_scale: tuple[float, float] = Field(default=(0.6, 1.0), description="Area of a crop as a part of the image's: lowest, highest.")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="Width over height of a crop: lowest, highest.")
    flip: float = Field(default=0.5, ge=0, le=1, description="How often left and right are swapped. Leave `flip` out of the policy for digits and text.")
    shift_px: float = Field(default=0.5, ge=0, le=127, description="Largest shift along each axis, in pixels of the view.")
    rotate_deg: float = Field(default=8.0, ge=0, le=180, description="Largest rotation to either side, in degrees.")
    scale: float = Field(default=0.08, ge=0, le=0.5, description="Largest change of size: 0.08 draws factors from 0.92 to 1.08.")
    scale_axes: Literal["one", "each"] = Field(default="one", description="Whether both axes share a factor (one) or each has its own (each).")
    side_px: int | None = Field(default=None, ge=1, description="Side of every view. Null keeps the image's size, and all images must then be of one size.")

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        if self.count > 1 and set(self.policy) == {"identity"}:
            raise ValueError(f"{self.count} views under the policy [identity] would all be the same; ask for 1, or add a kind")
        self.as_policy()
        return self

    def as_policy(self) -> ViewPolicy:
        """The same as what `stillroom.views` draws from."""
        return ViewPolicy(kinds=self.policy, **self.model_dump(exclude={"count", "policy"}))


class TeacherParams(Params):
    """Parameters of `reinforce.teacher`."""

    views: Views = Field(Views(), description="Which views are drawn, and how many.")
    top_k: int = Field(10, ge=1, description="Classes kept in a label, the most probable; the others share what is left. Up to 16 classes are stored whole.")
    temperature: float = Field(1.0, gt=0, description="Each member's softmax is taken at this temperature. 1 gives its probabilities as they are.")
    batch: int = Field(256, ge=1, description="Views that the teacher sees at once. It can change the last bits of a label.")
    min_accuracy: float | None = Field(
        None, ge=0, le=1, description="Refuse a teacher that is right on less of the plain images of `check_on` (2,000 at most)."
    )


def adds(params: TeacherParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Field]:
    """`views`, with the replay contract and the kind of label in the field's metadata.

    Raises:
        InputError: the labels have no class names, so that the length of a soft label is unknown.
    """
    num_classes = len(_names(schemas["samples"]))
    label = {"num_classes": num_classes, "top_k": params.top_k, "temperature": params.temperature}
    return {"views": views_field(view_contract(params.views.as_policy()), soft_label_type(num_classes, params.top_k), label)}


@dataclass(frozen=True)
class Teacher:
    """The members of the ensemble, all answering for the samples' labels in their order."""

    members: "Sequence[Classifier]"
    # 3 where a member wants colour, so that grey pictures among colour ones go along; None as they are.
    channels: int | None
    # Height and width that all images must have, where views keep the image's size.
    size_px: tuple[int, int] | None = None


def setup(inputs: Mapping[str, Table], params: TeacherParams, work: Work) -> Teacher:
    """Load the teacher once a process, match its classes to the samples' labels, and see whether it is good enough.

    Raises:
        InputError: a label that the teacher doesn't know.
        StageError: its accuracy on `check_on` is below `min_accuracy`.
    """
    from tasks.nets.models import load_classifiers

    members = load_classifiers(inputs["teacher"], work.device)
    found = Teacher(members, 3 if any(member.config["channels"] == 3 for member in members) else None)
    if params.min_accuracy is not None:
        if "check_on" not in inputs:
            raise StageError("reinforce.teacher", "min_accuracy needs samples to measure it on", "add check_on to `from`, such as check_on: split.validation")
        _check_accuracy(found, inputs["check_on"], params)
    names = _names(inputs["samples"].schema)
    return Teacher([member.with_labels(names) for member in members], found.channels, _first_size(inputs["samples"], params))


@row(
    version=1,
    inputs={
        "samples": Input(requires=["image", "label"]),
        "teacher": Input(kind="model"),
        "check_on": Input(requires=["image", "label"], optional=True, trains=False),
    },
    adds=adds,
    setup=setup,
    keeps_rows=True,
    random=True,
)
def teacher(batch: pa.RecordBatch, params: TeacherParams, state: Teacher, draw: Draw) -> Rows:
    """Draw views of each sample, and store them as numbers with the teacher's soft label for each.

    The label of a view is the mean of the members' softmaxes on the replayed pixels, as in Dataset
    Reinforcement (Faghri et al. 2023, arXiv 2303.08983). Views of one row depend on that row only.

    Args:
        batch: B rows with `sample_id`, `image`.

    Returns:
        The B rows with `views`: list<struct<view parameters, soft_label>>, V views each.

    Raises:
        StageError: an image can't be decoded, or the teacher's answer is no distribution.
    """
    policy, count = params.views.as_policy(), params.views.count
    ids = batch["sample_id"].to_pylist()
    # About one batch of views at a time: 8 views of 1,024 photos at once would take 1.2 GB.
    step = max(1, params.batch // count)
    parts = [
        _label_views(ids[start : start + step], batch["image"].slice(start, step), policy, params, state, draw) for start in range(0, max(1, len(ids)), step)
    ]
    views = pa.StructArray.from_arrays(
        [pa.concat_arrays([part.field(index) for part in parts]) for index in range(parts[0].type.num_fields)],
        fields=list(parts[0].type),
    )
    offsets = pa.array(np.arange(len(ids) + 1) * count, pa.int32())
    return Rows(batch.append_column("views", pa.ListArray.from_arrays(offsets, views)))


def _label_views(ids: Sequence[str], images: pa.Array, policy: ViewPolicy, params: TeacherParams, state: Teacher, draw: Draw) -> pa.StructArray:
    """The views of a few samples, one sample after another: the fields of VIEW_TYPE and `soft_label`."""
    count = params.views.count
    decoded = [_decode(sample_id, image, state) for sample_id, image in zip(ids, images, strict=True)]
    sizes_B2 = np.array([pixels_CHW.shape[1:] for pixels_CHW in decoded], np.int64).reshape(-1, 2)
    views = draw_views(policy, ids, sizes_B2, draw, count).values
    pixels = replay([pixels_CHW for pixels_CHW in decoded for _ in range(count)], views, view_contract(policy))
    probs = _probs(state, pixels, params)
    wrong = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if len(wrong):
        raise StageError("reinforce.teacher", f"sample '{ids[wrong[0] // count]}': the teacher's answer holds NaN or infinity", "look at the model's weights")
    labels = encode(probs, params.top_k)
    return pa.StructArray.from_arrays([*(views.field(field.name) for field in views.type), labels], names=[*(field.name for field in views.type), "soft_label"])


def _probs(state: Teacher, pixels_BCHW: np.ndarray, params: TeacherParams) -> np.ndarray:
    """Mean of the members' softmaxes at the temperature, float32 [B, K].

    p^(1/T), normalised, is the softmax at T: the logits' constant falls out.
    """
    total_BK = 0.0
    for member in state.members:
        probs_BK = member.probs(pixels_BCHW, params.batch).astype(np.float64) ** (1 / params.temperature)
        total_BK = total_BK + probs_BK / probs_BK.sum(axis=1, keepdims=True)
    return np.asarray(total_BK / len(state.members), np.float32)


def _check_accuracy(state: Teacher, table: Table, params: TeacherParams) -> None:
    from tasks.nets.models import accuracy

    names = label_names(table.schema)
    members = [member.with_labels(names) for member in state.members] if names else state.members
    right = rows = 0.0
    for batch in table.scan(["sample_id", "image", "label"], batch_size=params.batch, stop=min(table.rows, CHECKED_ROWS)):
        batch = batch.filter(batch["label"].is_valid())
        if not batch.num_rows:
            continue
        pixels = decode_batch(batch["image"], channels=state.channels, side_px=params.views.side_px)
        right += accuracy(members, pixels, batch["label"].to_numpy(), params.batch) * batch.num_rows
        rows += batch.num_rows
    found = right / rows if rows else 0.0
    if params.min_accuracy is not None and found < params.min_accuracy:
        raise StageError(
            "reinforce.teacher",
            f"the teacher is right on {found:.1%} of {rows:.0f} plain images of check_on, and min_accuracy asks for {params.min_accuracy:.1%}",
            "train a better teacher, or lower min_accuracy",
        )


def _decode(sample_id: str, image: pa.Scalar, state: Teacher) -> np.ndarray:
    """One image as uint8 [C, H, W]."""
    try:
        pixels_CHW = decode_batch([image.as_py()], channels=state.channels)[0]
    except ImageFault as fault:
        reason = str(fault).removeprefix("row 0: ")
        raise StageError("reinforce.teacher", f"sample '{sample_id}': {reason}", "let filter.decodable drop such rows first") from fault
    if state.size_px not in (None, pixels_CHW.shape[1:]):
        own, first = (f"{width}x{height}" for height, width in (pixels_CHW.shape[1:], state.size_px or (0, 0)))
        raise StageError("reinforce.teacher", f"sample '{sample_id}' has {own} px, the first has {first}", "give views a side_px, and all are resized to it")
    return pixels_CHW


def _first_size(table: Table, params: TeacherParams) -> tuple[int, int] | None:
    """Height and width of the first image, where views keep the image's size and so all must agree; else None."""
    if params.views.side_px is not None or not table.rows:
        return None
    first = table.take([0], ["sample_id", "image"])
    height, width = _decode(first["sample_id"][0].as_py(), first["image"][0], Teacher([], None)).shape[1:]
    return height, width


def _names(schema: pa.Schema) -> list[str]:
    names = label_names(schema)
    if not names:
        raise InputError("column 'label'", "has no class names, so the number of classes is unknown", "declare it with stillroom.fields.label_field")
    return names
