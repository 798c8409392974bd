"""reinforce.hard_views: of many views of each sample, store those on which a student disagrees most with its teacher."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from scipy.special import rel_entr

from stillroom.operators import Draw, Input, Params, Rows, Table, Work, row
from stillroom.soft_labels import encode, soft_label_type
from stillroom.views import MOSAIC_GRID, Kind, replay, view_contract, views_field
from tasks.nets.models import Classifier, Judges, ensemble_probs, judges_of, load_classifiers
from tasks.reinforce._labels import Teacher, channels_of, decoded, known_names, own_labels, refuse_no_number, teacher_of, varying
from tasks.reinforce._views import Views, draw_of

# B = rows of a batch, T = candidates a row, K = classes

NAME = "reinforce.hard_views"
# Below it a student's probability counts as it: what it holds impossible would be infinitely far.
LEAST_PROBABILITY = 1e-12


class HardViewsParams(Params):
    """Parameters of `reinforce.hard_views`."""

    views: Views = Field(default=Views(), description="Which views are drawn, and how many of them are stored at most.")
    candidates: int = Field(default=32, ge=1, le=1024, description="Views that are drawn and looked at for each sample.")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="The teacher's probability of the row's label that a view needs at least.")
    top_k: int = Field(default=10, ge=1, description="Classes kept in a label, as in reinforce.teacher.")
    judge: Judges = Field(default="all", description="Which of the teacher's members label a sample: all, or those alone that didn't see it in training.")
    batch: int = Field(default=256, ge=1, description="Views that a net sees at once. It can change the last bits of a label, and so a choice.")

    @model_validator(mode="after")
    def _leaves_a_choice(self) -> Self:
        if self.candidates < self.views.count:
            raise ValueError(f"candidates: {self.candidates} are fewer than the {self.views.count} views to be stored")
        if set(self.views.policy) == {"identity"}:
            raise ValueError("views.policy: [identity] leaves nothing to choose from; add a kind")
        if self.views.as_policy().mixing:
            raise ValueError(f"views.policy: {', '.join(self.views.as_policy().mixing)} mix in views by their number, and a choice among views moves numbers")
        return self


class Pair(NamedTuple):
    """A teacher, and the members of its student, who answer for the same labels."""

    teacher: Teacher
    student: Sequence[Classifier]


def adds(params: HardViewsParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    """`views` as reinforce.teacher's, and `hard_views`, how many of them are hard.

    Raises:
        InputError: the labels have no class names.
    """
    num_classes = len(known_names(schemas["samples"]))
    label = {"num_classes": num_classes, "top_k": params.top_k, "temperature": 1.0}
    views = views_field(view_contract(params.views.as_policy()), soft_label_type(num_classes, params.top_k), label)
    return {"views": varying(views), "hard_views": pa.int32()}


def setup(inputs: Mapping[str, Table], params: HardViewsParams, work: Work) -> Pair:
    """Load both once a process.

    Raises:
        InputError: a label that one of them doesn't know.
    """
    teacher, student = (load_classifiers(inputs[name], work.device) for name in ("teacher", "student"))
    found = teacher_of(NAME, teacher, inputs["samples"], params.views)
    names = known_names(inputs["samples"].schema)
    return Pair(Teacher(found.members, channels_of([*teacher, *student]), found.size_px), [member.with_labels(names) for member in student])


@row(
    version=2,
    inputs={"samples": Input(requires=["image", "label"], also=[MOSAIC_GRID]), "teacher": Input(kind="model"), "student": Input(kind="model")},
    adds=adds,
    setup=setup,
    keeps_rows=True,
    random=True,
)
def hard_views(batch: pa.RecordBatch, params: HardViewsParams, state: Pair, draw: Draw) -> Rows:
    """Draw many views of each sample, and store those on which student and teacher disagree most, with the teacher's labels.

    After HARD, which trains a network to find such augmentations: here they are searched for among
    `candidates` draws. A candidate qualifies where the teacher gives the row's label at least
    `min_confidence`; of these, the `views.count` with the largest KL(teacher || student) are stored, the hardest
    first, equal ones in the order drawn. p is in both the mean of the members' softmaxes, at temperature 1. Where none
    qualifies, the plain view is stored. Views of one row depend on that row only.

    Args:
        batch: B rows with `sample_id`, `image`, `label`.

    Returns:
        The B rows with `views`, 1 to `views.count` each, and `hard_views` (int32): how many qualified and are stored, 0 where the plain view stands in.

    Raises:
        StageError: an image can't be decoded, a row has no label, or an answer is no number.
        InputError: `judge: unseen`, and a sample that each member of the teacher saw, or may have seen.
    """
    # About one batch of candidates at a time.
    step = max(1, params.batch // params.candidates)
    parts = [_chosen(batch.slice(start, step), params, state, draw) for start in range(0, max(1, batch.num_rows), step)]
    hard_B = np.concatenate([part[1] for part in parts])
    lists = pa.concat_arrays([part[0] for part in parts])
    return Rows(batch.append_column("views", lists).append_column("hard_views", pa.array(hard_B, pa.int32())))


def _chosen(batch: pa.RecordBatch, params: HardViewsParams, state: Pair, draw: Draw) -> tuple[pa.ListArray, np.ndarray]:
    """The stored views of a few samples, and how many of each are hard."""
    rows, looked_at = batch.num_rows, params.candidates
    label_B = own_labels(NAME, batch, len(state.student[0].label_names))
    drawn = _seen(batch, params.views.model_copy(update={"count": looked_at}), params, state, draw)
    hardness_BT = divergence(drawn.taught, drawn.learnt).reshape(rows, looked_at)
    qualifies_BT = drawn.taught[np.arange(rows * looked_at), np.repeat(label_B, looked_at)].reshape(rows, looked_at) >= params.min_confidence
    order_BT = np.argsort(np.where(qualifies_BT, -hardness_BT, np.inf), axis=1, kind="stable")
    hard_B = np.minimum(qualifies_BT.sum(axis=1), params.views.count)
    without = np.flatnonzero(hard_B == 0)
    plain = _seen(batch.take(pa.array(without)), params.views.model_copy(update={"count": 1, "policy": _with_identity(params.views)}), params, state, draw)
    # The plain views stand behind all candidates.
    places = [at * looked_at + order_BT[at, :hard] for at, hard in enumerate(hard_B)]
    for number, at in enumerate(without):
        places[at] = np.array([rows * looked_at + number])
    stored = np.concatenate([np.zeros(0, np.int64), *places])
    views = pa.concat_arrays([drawn.views, plain.views]).take(pa.array(stored))
    labels = encode(np.concatenate([drawn.taught, plain.taught])[stored], params.top_k)
    structs = pa.StructArray.from_arrays(
        [*(views.field(field.name) for field in views.type), labels], names=[*(field.name for field in views.type), "soft_label"]
    )
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, places)]), pa.int32()), structs), hard_B


def _with_identity(views: Views) -> tuple[Kind, ...]:
    """The policy whose view 0 is plain, and has the fields of the others."""
    return ("identity", *(kind for kind in views.policy if kind != "identity"))


class _Seen(NamedTuple):
    """Views of some samples, one sample after another, and what both said of each: float32 [views, K]."""

    views: pa.StructArray
    taught: np.ndarray
    learnt: np.ndarray


def _seen(batch: pa.RecordBatch, views: Views, params: HardViewsParams, state: Pair, draw: Draw) -> _Seen:
    ids, images = batch["sample_id"].to_pylist(), decoded(NAME, batch, state.teacher)
    structs = draw_of(NAME, batch, [pixels_CHW.shape[1:] for pixels_CHW in images], views, draw).values
    pixels = replay([pixels_CHW for pixels_CHW in images for _ in range(views.count)], structs, view_contract(views.as_policy()))
    judges = np.repeat(judges_of(state.teacher.members, ids, params.judge), views.count, axis=1)
    taught = ensemble_probs(state.teacher.members, pixels, params.batch, judges_MB=judges, temperature=1.0)
    learnt = ensemble_probs(state.student, pixels, params.batch)
    refuse_no_number(NAME, ids, taught)
    refuse_no_number(NAME, ids, learnt, "student")
    return _Seen(structs, taught, learnt)


def divergence(taught: np.ndarray, learnt: np.ndarray) -> np.ndarray:
    """KL(teacher || student) of each pair of rows, in nats, float64."""
    return rel_entr(taught.astype(np.float64), np.maximum(learnt, LEAST_PROBABILITY)).sum(axis=1)
