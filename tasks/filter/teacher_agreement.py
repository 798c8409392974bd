"""filter.teacher_agreement: drop the samples whose label a teacher doesn't see in them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.fields import label_field, label_names
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Input, Params, Rows, Table, Work, row
from tasks.nets.models import Classifier, Judges, ensemble_probs, judges_of, load_classifiers

# B = rows of a batch, J = those that are judged, M = members of the teacher, K = classes


class TeacherAgreementParams(Params):
    """Parameters of `filter.teacher_agreement`."""

    min_probability: float = Field(
        default=0.0, ge=0, le=1, description="Drop below this probability of the row's label, though it be the teacher's first choice."
    )
    only_synthetic: bool = Field(default=False, description="Judge rows with `synthetic` true only; the others stay, with null in the added columns.")
    judge: Judges = Field(default="all", description="Which members judge a sample: all, or those alone that didn't see it in training.")
    batch: int = Field(default=256, ge=1, description="Images that the teacher sees at once; the last batch is filled up.")


class Teacher(NamedTuple):
    """The members of the teacher, answering for the samples' labels, and those labels' names."""

    members: list[Classifier]
    names: list[str]


def _requires(params: TeacherAgreementParams) -> list[str]:
    return ["image", "label", *(["synthetic"] if params.only_synthetic else [])]


def _adds(params: TeacherAgreementParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    names = label_names(schemas["samples"])
    return {"teacher_label": label_field(names) if names else pa.int64(), "teacher_probability": pa.float32()}


def _setup(inputs: Mapping[str, Table], params: TeacherAgreementParams, work: Work) -> Teacher:
    members = load_classifiers(inputs["teacher"], work.device)
    names = label_names(inputs["samples"].schema) or members[0].label_names
    return Teacher([member.with_labels(names) for member in members], names)


@row(version=1, adds=_adds, setup=_setup, inputs={"samples": Input(requires=_requires), "teacher": Input(kind="model")})
def teacher_agreement(batch: pa.RecordBatch, params: TeacherAgreementParams, state: Teacher) -> Rows:
    """Drop rows whose label isn't the teacher's first choice, or is so with too little probability.

    The teacher is the mean of the softmaxes of all models of its table; with `judge: unseen`, of those that
    weren't trained on the sample. `teacher_label` is its first
    choice (of equal ones the lowest class), `teacher_probability` what it gives the row's own label.
    An image that can't be decoded is rejected.

    Raises:
        InputError: the teacher lacks one of the samples' classes, or a label is none of them; with
            `judge: unseen`, a sample that each model saw, or may have seen.
    """
    labels_B = batch["label"].to_numpy(zero_copy_only=False)
    judged_B = batch["synthetic"].fill_null(False).to_numpy(zero_copy_only=False) if params.only_synthetic else np.ones(len(labels_B), bool)
    pixels, rejected = _decoded(batch["image"], judged_B)
    judged = np.array(sorted(pixels), np.int64)
    judges_MJ = judges_of(state.members, [batch["sample_id"][place].as_py() for place in judged.tolist()], params.judge)
    probs_JK = _asked(state.members, [pixels[place] for place in judged], judges_MJ, params.batch)
    first, probability, dropped = (np.full(len(labels_B), None, object) for _ in range(3))
    for place, probs_K in zip(judged, probs_JK, strict=True):
        label = labels_B[place]
        if not 0 <= label < len(state.names):
            raise InputError("label", f"{label} is none of the teacher's {len(state.names)} classes")
        first[place], probability[place] = int(probs_K.argmax()), float(probs_K[int(label)])
        dropped[place] = _reason(first[place], int(label), probability[place], state.names, params)
    return Rows(
        batch.append_column("teacher_label", pa.array(first, pa.int64())).append_column("teacher_probability", pa.array(probability, pa.float32())),
        dropped=pa.array(dropped, pa.string()),
        rejected=pa.array(rejected, pa.string()),
    )


def _decoded(images: pa.Array, judged_B: np.ndarray) -> tuple[dict[int, np.ndarray], list[str | None]]:
    """Pixels [C, H, W] of the judged images by place, and for each row why it couldn't be decoded."""
    pixels: dict[int, np.ndarray] = {}
    reasons: list[str | None] = [None] * len(images)
    for place in np.flatnonzero(judged_B):
        try:
            (pixels[int(place)],) = decode_batch(images.slice(place, 1))
        except ImageFault as fault:
            reasons[place] = str(fault).removeprefix("row 0: ")
    return pixels, reasons


def _asked(members: list[Classifier], pixels: list[np.ndarray], judges_MJ: np.ndarray, batch: int) -> np.ndarray:
    """The teacher's probabilities of images of any sizes, float32 [J, K]."""
    probs_JK = np.zeros((len(pixels), len(members[0].label_names)), np.float32)
    # A stack holds one size; a member resizes it to its own.
    for shape in {image.shape for image in pixels}:
        alike = [place for place, image in enumerate(pixels) if image.shape == shape]
        probs_JK[alike] = ensemble_probs(members, np.stack([pixels[place] for place in alike]), batch, judges_MB=judges_MJ[:, alike])
    return probs_JK


def _reason(first: int, label: int, probability: float, names: list[str], params: TeacherAgreementParams) -> str | None:
    if first != label:
        return f"teacher sees '{names[first]}', not '{names[label]}'"
    if probability < params.min_probability:
        return f"teacher's probability of '{names[label]}' below {params.min_probability}"
    return None
