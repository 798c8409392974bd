"""reinforce.teacher: store views of each sample with the teacher's soft label for each view."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError, StageError
from stillroom.fields import label_names
from stillroom.images import decode_batch
from stillroom.operators import Draw, Input, Params, Rows, Table, Work, row
from stillroom.soft_labels import encode, soft_label_type
from stillroom.views import MOSAIC_GRID, mixed_in, replay, view_contract, views_field
from tasks.nets.models import Classifier, Judges, accuracy, ensemble_probs, judges_of, load_classifiers
from tasks.reinforce._labels import Teacher, channels_of, decoded, known_names, own_labels, refuse_no_number, teacher_of, with_labels
from tasks.reinforce._views import Views, draw_of, drawn_partners

# B = rows of a batch, V = views a row, C H W = an image

NAME = "reinforce.teacher"
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
    """`views`, with the replay contract and the kind of label in the field's metadata; `asked`, where not all rows may be.

    Raises:
        InputError: the labels have no class names, so that the length of a soft label is unknown; views mix in samples that
            the teacher may not be asked for.
    """
    if (mixing := params.views.as_policy().mixing) and ("ask" in schemas or params.judge == "unseen"):
        problem = f"{', '.join(mixing)} mix in samples of which `ask` and `judge: unseen` say who may label them alone"
        raise InputError("views.policy", problem, "leave mixing kinds out of the policy")
    num_classes = len(known_names(schemas["samples"]))
    label = {"num_classes": num_classes, "top_k": params.top_k, "temperature": params.temperature}
    views = views_field(view_contract(params.views.as_policy()), soft_label_type(num_classes, params.top_k), label)
    return {"views": views} | ({"asked": pa.bool_()} if "ask" in schemas else {})


def setup(inputs: Mapping[str, Table], params: TeacherParams, work: Work) -> Teacher:
    """Load the teacher once a process, match its classes to the samples' labels, and see whether it is good enough.

    Raises:
        InputError: a label that the teacher doesn't know.
        StageError: its accuracy on `check_on` is below `min_accuracy`; `ask` names none of the samples.
    """
    members = load_classifiers(inputs["teacher"], work.device)
    if params.min_accuracy is not None:
        if "check_on" not in inputs:
            raise StageError(NAME, "min_accuracy needs samples to measure it on", "add check_on to `from`, such as check_on: split.validation")
        _check_accuracy(members, inputs["check_on"], params)
    found = teacher_of(NAME, members, inputs["samples"], params.views)
    if "ask" not in inputs:
        return found
    may_ask = _may_ask(inputs["samples"], inputs["ask"])
    work.metrics["asked"] = len(may_ask)
    return replace(found, may_ask=may_ask)


@row(
    version=3,
    inputs={
        "samples": Input(requires=["image", "label"], also=[MOSAIC_GRID]),
        "teacher": Input(kind="model"),
        "check_on": Input(requires=["image", "label"], optional=True, trains=False),
        "ask": Input(optional=True),
    },
    adds=adds,
    setup=setup,
    keeps_rows=True,
    random=True,
    peers=lambda params: bool(params.views.as_policy().mixing),
)
def teacher(batch: pa.RecordBatch, params: TeacherParams, state: Teacher, draw: Draw) -> Rows:
    """Draw views of each sample, and store them as numbers with the teacher's soft label for each.

    The label of a view is the mean of the members' softmaxes on the replayed pixels, as in Dataset
    Reinforcement (Faghri et al. 2023, arXiv 2303.08983); with `judge: unseen`, of the members that weren't
    trained on the sample. Where `ask` names the samples that the teacher may be asked for, the views of the
    others have all probability on their row's own label. Views of one row depend on that row only; where they
    mix, also on the ids of the others, and the label is the teacher's answer to the mixed pixels.

    Args:
        batch: B rows with `sample_id`, `image`, `label`.

    Returns:
        The B rows with `views`: list<struct<view parameters, soft_label>>, V views each; and with an `ask`, `asked`.

    Raises:
        StageError: an image can't be decoded, the teacher's answer is no distribution, or a row that it isn't asked for has no label.
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
    batch = batch.append_column("views", pa.ListArray.from_arrays(offsets, views))
    if state.may_ask is None:
        return Rows(batch)
    return Rows(batch.append_column("asked", pa.array(state.asked(batch["sample_id"].to_pylist()))))


def _label_views(batch: pa.RecordBatch, params: TeacherParams, state: Teacher, draw: Draw) -> pa.StructArray:
    """The views of a few samples, one sample after another, with `soft_label`."""
    ids, count = batch["sample_id"].to_pylist(), params.views.count
    images = decoded(NAME, batch, state)
    views = draw_of(NAME, batch, [pixels_CHW.shape[1:] for pixels_CHW in images], params.views, draw, state.peers).values
    asked_B = state.asked(ids)
    who = [sample_id for sample_id, asked in zip(ids, asked_B, strict=True) if asked]
    probs = np.zeros((len(views), len(state.members[0].label_names)), np.float32)
    own = batch.filter(pa.array(~asked_B))
    probs[np.repeat(~asked_B, count), np.repeat(own_labels(NAME, own, probs.shape[1]), count)] = 1
    shown = np.flatnonzero(np.repeat(asked_B, count))
    of_asked, contract = views.take(pa.array(shown)), view_contract(params.views.as_policy())
    partners = None
    if state.peers is not None and state.table is not None:
        fetch = drawn_partners(state.table, state.peers, params.views, draw, lambda read: decoded(NAME, read, state))
        partners = mixed_in([ids[at // count] for at in shown], of_asked, contract, fetch)
    pixels = replay([images[at // count] for at in shown], of_asked, contract, partners)
    judges = np.repeat(judges_of(state.members, who, params.judge), count, axis=1)
    probs[shown] = ensemble_probs(state.members, pixels, params.batch, judges_MB=judges, temperature=params.temperature)
    refuse_no_number(NAME, ids, probs)
    return with_labels(views, encode(probs, params.top_k))


def _may_ask(samples: Table, ask: Table) -> frozenset[str]:
    """Those of the samples that `ask` names."""
    found = frozenset.intersection(*(frozenset(table.frame(["sample_id"])["sample_id"].to_list()) for table in (samples, ask)))
    if samples.rows and not found:
        raise StageError(NAME, f"none of the {ask.rows} rows of `ask` is among the {samples.rows} samples", "`ask` should be a choice of the same rows")
    return found


def _check_accuracy(members: Sequence[Classifier], table: Table, params: TeacherParams) -> None:
    names = label_names(table.schema)
    members = [member.with_labels(names) for member in members] if names else members
    right = rows = 0.0
    for batch in table.scan(["sample_id", "image", "label"], batch_size=params.batch, stop=min(table.rows, CHECKED_ROWS)):
        batch = batch.filter(batch["label"].is_valid())
        if not batch.num_rows:
            continue
        pixels = decode_batch(batch["image"], channels=channels_of(members), side_px=params.views.side_px)
        right += accuracy(members, pixels, batch["label"].to_numpy(), params.batch) * batch.num_rows
        rows += batch.num_rows
    found = right / rows if rows else 0.0
    if params.min_accuracy is not None and found < params.min_accuracy:
        raise StageError(
            NAME,
            f"the teacher is right on {found:.1%} of {rows:.0f} plain images of check_on, and min_accuracy asks for {params.min_accuracy:.1%}",
            "train a better teacher, or lower min_accuracy",
        )
