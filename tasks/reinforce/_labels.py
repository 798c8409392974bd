"""What the operators share that store views with a teacher's labels: who is asked, and what they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stillroom.digests import canonical_json
from stillroom.errors import InputError, StageError
from stillroom.fields import label_names
from stillroom.images import ImageFault, decode_batch
from stillroom.operators import Table
from stillroom.views import LABEL, Peers, label_of
from tasks.nets.models import Classifier
from tasks.reinforce._views import Size, Views, common_size, peers_of, refuse_fault, refuse_other_size

__all__ = ["Teacher", "channels_of", "decoded", "known_names", "own_labels", "refuse_no_number", "teacher_of", "varying", "with_labels"]

# B = rows of a batch, C H W = an image, K = classes


@dataclass(frozen=True)
class Teacher:
    """The members of the ensemble, all answering for the samples' labels in their order."""

    members: Sequence[Classifier]
    # 3 where a member wants colour, so that grey pictures among colour ones go along; None as they are.
    channels: int | None
    # What all images must have, where views keep the image's size.
    size_px: Size | None = None
    # The samples that it may be asked for; None is all.
    may_ask: frozenset[str] | None = None
    # Where views mix: who may be a partner, and the table to read them from.
    peers: Peers | None = None
    table: Table | None = None

    def asked(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Which of these samples the teacher labels, bool [B]."""
        return np.array([self.may_ask is None or sample_id in self.may_ask for sample_id in sample_ids], bool)


def teacher_of(operator: str, members: Sequence[Classifier], samples: Table, views: Views) -> Teacher:
    """The teacher of these samples, its classes matched to their labels by name.

    Raises:
        InputError: a label that a member doesn't know.
    """
    names = known_names(samples.schema)
    own = [member.with_labels(names) for member in members]
    return Teacher(own, channels_of(members), common_size(operator, samples, views), peers=peers_of(samples, views), table=samples)


def channels_of(members: Sequence[Classifier]) -> int | None:
    """The channels that images are decoded to: 3 where a member wants them, None as they are."""
    return 3 if any(member.config["channels"] == 3 for member in members) else None


def known_names(schema: pa.Schema) -> list[str]:
    """The class names of the samples' labels.

    Raises:
        InputError: there are none, so that the length of a soft label is unknown.
    """
    names = label_names(schema)
    if not names:
        raise InputError("column 'label'", "has no class names, so the number of classes is unknown", "declare it with stillroom.fields.label_field")
    return names


def decoded(operator: str, batch: pa.RecordBatch, teacher: Teacher) -> list[np.ndarray]:
    """The images of B rows, uint8 [C, H, W] each.

    Raises:
        StageError: one can't be decoded, or has another size than all must have.
    """
    images = []
    for sample_id, image in zip(batch["sample_id"].to_pylist(), batch["image"], strict=True):
        try:
            pixels_CHW = decode_batch([image.as_py()], channels=teacher.channels)[0]
        except ImageFault as fault:
            raise refuse_fault(operator, sample_id, fault) from fault
        refuse_other_size(operator, sample_id, pixels_CHW.shape[1:], teacher.size_px)
        images.append(pixels_CHW)
    return images


def own_labels(operator: str, batch: pa.RecordBatch, num_classes: int) -> np.ndarray:
    """The labels of B rows, int64 [B].

    Raises:
        StageError: a row has none, or one outside the classes.
    """
    label_B = batch["label"].fill_null(-1).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero((label_B < 0) | (label_B >= num_classes))
    if len(odd):
        label = batch["label"][int(odd[0])].as_py()
        problem = "has no label" if label is None else f"has label {label}, and its soft labels know {num_classes} classes"
        raise StageError(operator, f"sample '{batch['sample_id'][int(odd[0])]}' {problem}", "drop such rows before this stage")
    return label_B


def refuse_no_number(operator: str, sample_ids: Sequence[str], probs: np.ndarray, who: str = "teacher") -> None:
    """Raise where an answer, of those to as many views of each sample, isn't finite.

    Raises:
        StageError: naming the sample.
    """
    wrong = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if len(wrong):
        at = wrong[0] // (len(probs) // len(sample_ids))
        raise StageError(operator, f"sample '{sample_ids[at]}': the {who}'s answer holds NaN or infinity", "look at the model's weights")


def varying(field: pa.Field) -> pa.Field:
    """A column of views of which rows may have different numbers: its metadata says so, and publishing doesn't take it for a fault."""
    return field.with_metadata({**field.metadata, LABEL: canonical_json(label_of(field) | {"varies": True})})


def with_labels(views: pa.StructArray, labels: pa.Array) -> pa.StructArray:
    """Views with a `soft_label` each, in place of the one that they have, if any."""
    fields = {field.name: views.field(field.name) for field in views.type} | {"soft_label": labels}
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
