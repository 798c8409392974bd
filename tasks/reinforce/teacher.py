"""reinforce.teacher: store views of each sample with the teacher's soft label for each view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError, StageError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Draw, Input, Params, Rows, Table, Work, row
from stillroom.soft_labels import encode, soft_label_type
from stillroom.views import MOSAIC_GRID, replay, view_contract, views_field
from tasks.nets.models import Classifier, Judges, accuracy, ensemble_probs, judges_of, load_classifiers
from tasks.reinforce._views import Size, Views, common_size, draw_of, refuse_fault, refuse_other_size

# B = rows of a batch, V = views a row, C H W = an image

CHECKED_ROWS = 2000


class TeacherParams(Params):
    """Parameters of `reinforce.teacher`."""

    views: Views = Field(Views(), description="Which views are drawn, and how many.")
    top_k: int = Field(10, ge=1, description="Classes kept in a label, the most probable; the others share what is left. Up to 16 classes are stored whole.")
    temperature: float = Field(1.0, gt=0, description="Each member's softmax is taken at this temperature. 1 gives its probabilities as they are.")
    judge: Judges = Field("all", description="Which members label a sample: all, or those alone that didn't see it in training (train.teacher with folds).")
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

    members: Sequence[Classifier]
    # 3 where a member wants colour, so that grey pictures among colour ones go along; None as they are.
    channels: int | None
    # What all images must have, where views keep the image's size.
    size_px: Size | None = None


def setup(inputs: Mapping[str, Table], params: TeacherParams, work: Work) -> Teacher:
    """Load the teacher once a process, match its classes to the samples' labels, and see whether it is good enough.

    Raises:
        InputError: a label that the teacher doesn't know.
        StageError: its accuracy on `check_on` is below `min_accuracy`.
    """
    members = load_classifiers(inputs["teacher"], work.device)
    found = Teacher(members, 3 if any(member.config["channels"] == 3 for member in members) else None)
    if params.min_accuracy is not None:
        if "check_on" not in inputs:
            raise StageError("reinforce.teacher", "min_accuracy needs samples to measure it on", "add check_on to `from`, such as check_on: split.validation")
        _check_accuracy(found, inputs["check_on"], params)
    names = _names(inputs["samples"].schema)
    return Teacher([member.with_labels(names) for member in members], found.channels, common_size("reinforce.teacher", inputs["samples"], params.views))


@row(
    version=1,
    inputs={
        "samples": Input(requires=["image", "label"], also=[MOSAIC_GRID]),
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
    Reinforcement (Faghri et al. 2023, arXiv 2303.08983); with `judge: unseen`, of the members that weren't
    trained on the sample. Views of one row depend on that row only.

    Args:
        batch: B rows with `sample_id`, `image`.

    Returns:
        The B rows with `views`: list<struct<view parameters, soft_label>>, V views each.

    Raises:
        StageError: an image can't be decoded, or the teacher's answer is no distribution.
        InputError: `judge: unseen`, and a sample that each member saw, or may have seen.
    """
    count = params.views.count
    # About one batch of views at a time: 8 views of 1,024 photos at once would take 1.2 GB.
    step = max(1, params.batch // count)
    parts = [_label_views(batch.slice(start, step), params, state, draw) for start in range(0, max(1, batch.num_rows), step)]
    views = pa.StructArray.from_arrays(
        [pa.concat_arrays([part.field(index) for part in parts]) for index in range(parts[0].type.num_fields)],
        fields=list(parts[0].type),
    )
    offsets = pa.array(np.arange(batch.num_rows + 1) * count, pa.int32())
    return Rows(batch.append_column("views", pa.ListArray.from_arrays(offsets, views)))


def _label_views(batch: pa.RecordBatch, params: TeacherParams, state: Teacher, draw: Draw) -> pa.StructArray:
    """The views of a few samples, one sample after another: the fields of VIEW_TYPE and `soft_label`."""
    ids, count = batch["sample_id"].to_pylist(), params.views.count
    decoded = [_decode(sample_id, image, state) for sample_id, image in zip(ids, batch["image"], strict=True)]
    views = draw_of("reinforce.teacher", batch, [pixels_CHW.shape[1:] for pixels_CHW in decoded], params.views, draw).values
    pixels = replay([pixels_CHW for pixels_CHW in decoded for _ in range(count)], views, view_contract(params.views.as_policy()))
    judges = np.repeat(judges_of(state.members, ids, params.judge), count, axis=1)
    probs = ensemble_probs(state.members, pixels, params.batch, judges_MB=judges, temperature=params.temperature)
    wrong = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if len(wrong):
        raise StageError("reinforce.teacher", f"sample '{ids[wrong[0] // count]}': the teacher's answer holds NaN or infinity", "look at the model's weights")
    labels = encode(probs, params.top_k)
    return pa.StructArray.from_arrays([*(views.field(field.name) for field in views.type), labels], names=[*(field.name for field in views.type), "soft_label"])


def _check_accuracy(state: Teacher, table: Table, params: TeacherParams) -> None:
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
        raise refuse_fault("reinforce.teacher", sample_id, fault) from fault
    refuse_other_size("reinforce.teacher", sample_id, pixels_CHW.shape[1:], state.size_px)
    return pixels_CHW


def _names(schema: pa.Schema) -> list[str]:
    names = label_names(schema)
    if not names:
        raise InputError("column 'label'", "has no class names, so the number of classes is unknown", "declare it with stillroom.fields.label_field")
    return names
