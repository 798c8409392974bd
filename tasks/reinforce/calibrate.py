"""reinforce.calibrate: of stored views, let go those on which the teacher is lost or too sure, and soften those that it half knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from schemas.quantities import Fraction
from stillroom.errors import InputError
from stillroom.operators import Input, Params, Rows, Table, row
from stillroom.soft_labels import decode, encode
from stillroom.views import label_of, mixed_columns
from tasks.reinforce._labels import own_labels, varying, with_labels

# B = rows of a batch, M = all views of them, K = classes, U = labels that occur

NAME = "reinforce.calibrate"
READ_ROWS = 256
# Labels decoded at once: of 1,000 classes they take 16 MB.
DECODED = 4096


class CalibrateParams(Params):
    """Parameters of `reinforce.calibrate`."""

    confidence: Literal["label", "largest"] = Field(
        default="label", description="What is compared: the teacher's probability of the row's label, or its largest one, whichever class that is."
    )
    thresholds: Literal["probability", "quantile"] = Field(
        default="probability", description="Whether thresholds are probabilities, or shares of all views by rising confidence."
    )
    discard_below: Fraction | None = Field(default=None, description="Views below it leave: the object isn't in them.")
    soften_below: Fraction | None = Field(default=None, description="Views below it that stay get the row's label, smoothed, in place of the teacher's.")
    discard_above: Fraction | None = Field(default=None, description="Views above it leave: nothing is to be learnt from them.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="Mass of a softened label that the other classes share.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        given = [value for value in (self.discard_below, self.soften_below, self.discard_above) if value is not None]
        if not given:
            raise ValueError("discard_below, soften_below, discard_above: one of them at least is needed, or nothing would change")
        if given != sorted(given):
            raise ValueError("thresholds must rise: discard_below, soften_below, discard_above")
        return self


class Bands(NamedTuple):
    """The thresholds as probabilities; None judges nothing."""

    discard_below: float | None
    soften_below: float | None
    discard_above: float | None


@dataclass(frozen=True)
class Calibration:
    """The bands, what the stored labels are, and what became of the views of the whole table."""

    bands: Bands
    num_classes: int
    top_k: int
    facts: Mapping[str, Any]


def _adds(params: CalibrateParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    field = schemas["samples"].field("views")
    if mixed_columns(schemas["samples"]):
        raise InputError("column 'views'", "mixes in views by their number, and discarding some moves numbers", "leave mixing kinds out of the policy")
    if label_of(field).get("num_classes") is None:
        raise InputError("column 'views'", "holds no teacher's labels, so there is no confidence to go by", "reinforce.teacher stores them")
    return {"views": varying(field), "views_discarded": pa.int32(), "views_softened": pa.int32()}


def setup(inputs: Mapping[str, Table], params: CalibrateParams) -> Calibration:
    """Read the confidence of all views, 8 bytes each: for the quantiles, and for the facts that the stage's record keeps."""
    table = inputs["samples"]
    label = label_of(table.schema.field("views"))
    read = [_Confidences.of(batch, params, label["num_classes"]) for batch in table.scan(["sample_id", "views", "label"], READ_ROWS)]
    given: tuple[float | None, ...] = (params.discard_below, params.soften_below, params.discard_above)
    if params.thresholds == "quantile":
        confidence_M = np.concatenate([part.confidence_M for part in read]) if read else np.zeros(0, np.float32)
        # `lower` gives a confidence that occurs, which is neither below nor above itself.
        given = tuple(None if share is None or not len(confidence_M) else float(np.quantile(confidence_M, share, method="lower")) for share in given)
    bands = Bands(*given)
    return Calibration(bands, label["num_classes"], label["top_k"], _facts(read, bands))


@row(
    version=1,
    inputs={"samples": Input(requires=["views", "label"])},
    adds=_adds,
    setup=setup,
    keeps_rows=True,
    peers=True,  # a quantile is over all rows, so none can be taken over from a build that had others
)
def calibrate(batch: pa.RecordBatch, params: CalibrateParams, state: Calibration, metrics: dict[str, Any]) -> Rows:
    """Sort the stored views of each sample by the teacher's confidence: some leave, some get a smoothed hard label, some stay.

    FerKD (Shen 2023, arXiv 2312.17473). With c the confidence, a view leaves where c < `discard_below` or
    c > `discard_above`; of the others, c < `soften_below` gives it the row's label with 1 - `smoothing`,
    the rest shared by the other classes; the others keep the teacher's label. A confidence at a threshold is
    neither below nor above it. Confidences are those of the labels as stored.

    A row all of whose views leave stays, without views: trainers show it plain, under its own label.

    Args:
        batch: B rows with `sample_id`, `views` with soft labels, `label`.

    Returns:
        The B rows with `views`, `views_discarded` and `views_softened` (int32, how many of the row's).

    Raises:
        StageError: a row has no label, or one that its soft labels don't know.
    """
    metrics |= state.facts
    column, rows = batch["views"], batch.num_rows
    read = _Confidences.of(batch, params, state.num_classes)
    fate = _fates(read.confidence_M, state.bands)
    stay_M, soften_M = np.flatnonzero(~fate.leave_M), np.flatnonzero(fate.soften_M)
    views = column.flatten()
    used_U, which = np.unique(read.label_B[read.row_M[soften_M]], return_inverse=True)
    labels = pa.concat_arrays([views.field("soft_label"), encode(_smoothed(used_U, state.num_classes, params.smoothing), state.top_k)])
    at_M = np.arange(len(views))
    at_M[soften_M] = len(views) + which
    kept = with_labels(views.take(pa.array(stay_M)), labels.take(pa.array(at_M[stay_M])))
    offsets = np.concatenate([[0], np.cumsum(_count(read.row_M[stay_M], rows))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), kept, type=column.type, mask=column.is_null())
    batch = batch.set_column(batch.schema.get_field_index("views"), batch.schema.field("views"), lists)
    batch = batch.append_column("views_discarded", pa.array(_count(read.row_M[fate.leave_M], rows), pa.int32()))
    return Rows(batch.append_column("views_softened", pa.array(_count(read.row_M[soften_M], rows), pa.int32())))


class _Confidences(NamedTuple):
    """Of the views of B rows: the row of each, int32 [M], the teacher's confidence, float32 [M], and the rows' labels, int64 [B]."""

    row_M: np.ndarray
    confidence_M: np.ndarray
    label_B: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch, params: CalibrateParams, num_classes: int) -> "_Confidences":
        label_B = own_labels(NAME, batch, num_classes)
        row_M = np.repeat(np.arange(batch.num_rows, dtype=np.int32), batch["views"].value_lengths().fill_null(0).to_numpy())
        stored, confidence_M = batch["views"].flatten().field("soft_label"), np.empty(len(row_M), np.float32)
        for start in range(0, len(row_M), DECODED):
            part = slice(start, start + DECODED)
            probs_MK = decode(stored[part], num_classes)
            confidence_M[part] = probs_MK.max(axis=1) if params.confidence == "largest" else probs_MK[np.arange(len(probs_MK)), label_B[row_M[part]]]
        return cls(row_M, confidence_M, label_B)


class _Fates(NamedTuple):
    """What becomes of M views: at most one is true of each."""

    below_M: np.ndarray
    above_M: np.ndarray
    soften_M: np.ndarray

    @property
    def leave_M(self) -> np.ndarray:
        return self.below_M | self.above_M


def _fates(confidence_M: np.ndarray, bands: Bands) -> _Fates:
    # In float64: a threshold of 0.1 isn't the float32 next to it.
    confidence_M = confidence_M.astype(np.float64)
    low, middle, high = -np.inf if bands[0] is None else bands[0], -np.inf if bands[1] is None else bands[1], np.inf if bands[2] is None else bands[2]
    below_M, above_M = confidence_M < low, confidence_M > high
    return _Fates(below_M, above_M, (confidence_M < middle) & ~below_M & ~above_M)


def _facts(read: list[_Confidences], bands: Bands) -> dict[str, Any]:
    """For the stage's record: the thresholds as probabilities, what share of the views met which fate, and how many rows lost all views."""
    views = sum(len(part.row_M) for part in read)
    counts, emptied = np.zeros(3, np.int64), 0
    for part in read:
        fate = _fates(part.confidence_M, bands)
        counts += [fate.below_M.sum(), fate.above_M.sum(), fate.soften_M.sum()]
        had_B, left_B = (_count(part.row_M[which], len(part.label_B)) for which in (slice(None), ~fate.leave_M))
        emptied += int(((had_B > 0) & (left_B == 0)).sum())
    shares = {name: round(int(count) / max(1, views), 6) for name, count in zip(("discarded_below", "discarded_above", "softened"), counts, strict=True)}
    kept = round((views - int(counts.sum())) / max(1, views), 6)
    return {"views": views, "thresholds": bands._asdict(), "shares": {**shares, "as_they_were": kept}, "rows_without_views": emptied}


def _smoothed(labels_U: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """A distribution for each label: 1 - smoothing at it, the others alike; of a single class all is at it."""
    probs_UK = np.full((len(labels_U), num_classes), smoothing / max(1, num_classes - 1))
    probs_UK[np.arange(len(labels_U)), labels_U] = 1 - smoothing if num_classes > 1 else 1
    return probs_UK


def _count(rows: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(rows, minlength=size)
