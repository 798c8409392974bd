"""reinforce.prototypes: a soft label for each sample, by how its vector points to the prototypes of the classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.special import softmax

from stillroom.errors import InputError, StageError
from stillroom.fields import label_names
from stillroom.operators import Input, Params, Rows, Table, row
from stillroom.soft_labels import encode, soft_label_type
from stillroom.views import check_contract, label_of, views_field
from tasks.reinforce._labels import own_labels, with_labels

# B = rows of a batch, D = numbers of a vector, K = classes

NAME = "reinforce.prototypes"
READ_ROWS = 1024
# Unit vectors are rounded to multiples of 2^-26: products are then multiples of 2^-52, and no sum of them passes 1, so
# that sums are exact, and the same for any cut into batches and on any BLAS.
GRID = 2.0**26


class PrototypesParams(Params):
    """Parameters of `reinforce.prototypes`."""

    vectors: str = Field(default="embedding", description="Vector column of the samples, and of `known`.")
    temperature: float = Field(default=0.1, gt=0, description="Cosines are divided by it before the softmax: small is sure, large is even.")
    top_k: int = Field(default=10, ge=1, description="Classes kept in the labels of stored views, as in reinforce.teacher.")


def _adds(params: PrototypesParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    samples = schemas["samples"]
    classes = len(_names(schemas.get("known", samples), "known" if "known" in schemas else "samples"))
    if "known" in schemas and label_names(samples) not in (None, label_names(schemas["known"])):
        raise InputError("from.known", "its classes are others than the samples'", "both need the same classes in the same order")
    added: dict[str, pa.DataType | pa.Field] = {"soft_label": pa.list_(pa.float32(), classes)}
    if "views" in samples.names:
        field = samples.field("views")
        if "num_classes" in label_of(field):
            raise InputError("column 'views'", "holds a teacher's labels already", "take samples without them, or with views of reinforce.views")
        label = {"num_classes": classes, "top_k": params.top_k, "temperature": params.temperature}
        added["views"] = views_field(check_contract(field), soft_label_type(classes, params.top_k), label)
    return added


@dataclass(frozen=True)
class Prototypes:
    """Unit vectors, float64 [K, D], one for each class."""

    units_KD: np.ndarray


def setup(inputs: Mapping[str, Table], params: PrototypesParams) -> Prototypes:
    """The mean direction of each class's rows, a batch of them in memory at a time.

    Raises:
        StageError: a vector that has no direction.
        InputError: a class without a row.
    """
    which = "known" if "known" in inputs else "samples"
    table = inputs[which]
    names = _names(table.schema, which)
    sums_KD = np.zeros((len(names), table.schema.field(params.vectors).type.list_size))
    for batch in table.scan(["sample_id", params.vectors, "label"], READ_ROWS):
        labelled = batch.filter(batch["label"].is_valid())
        np.add.at(sums_KD, own_labels(NAME, labelled, len(names)), _units(labelled, params.vectors))
    lengths_K = np.linalg.norm(sums_KD, axis=1)
    if not lengths_K.all():
        raise InputError(f"class '{names[int(lengths_K.argmin())]}'", f"has no row in `{which}`, or vectors that cancel out", "each class needs a prototype")
    return Prototypes(np.rint(sums_KD / lengths_K[:, None] * GRID) / GRID)


@row(
    version=2,
    inputs={
        "samples": Input(requires=lambda params: [params.vectors], also=["label", "views"]),
        "known": Input(requires=lambda params: [params.vectors, "label"], optional=True),
    },
    adds=_adds,
    setup=setup,
    keeps_rows=True,
    peers=True,  # without `known`, the prototypes are of the samples themselves
)
def prototypes(batch: pa.RecordBatch, params: PrototypesParams, state: Prototypes) -> Rows:
    """Give each sample a soft label: softmax(cos(vector, prototype of the class) / `temperature`).

    A class's prototype is the mean of its rows' vectors, each scaled to length 1: of the rows of `known`,
    where it is given, else of the samples that have a label. The label is of the sample, so it is that of
    each of its views, where it has some that no teacher labelled.

    Args:
        batch: B rows with `sample_id`, the vectors, and `views` where the input has them.

    Returns:
        The B rows with `soft_label`, float32 [K], and `views` with a soft label each.

    Raises:
        StageError: a vector that holds NaN or infinity, or only zeros.
    """
    probs_BK = softmax(_units(batch, params.vectors) @ state.units_KD.T / params.temperature, axis=1)
    flat = pa.array(probs_BK.astype(np.float32).ravel())
    batch = batch.append_column("soft_label", pa.FixedSizeListArray.from_arrays(flat, probs_BK.shape[1]))
    if "views" not in batch.schema.names:
        return Rows(batch)
    column = batch["views"]
    counts_B = column.value_lengths().fill_null(0).to_numpy()
    row_M = np.repeat(np.arange(batch.num_rows), counts_B)
    views = with_labels(column.flatten(), encode(probs_BK, params.top_k).take(pa.array(row_M)))
    lists = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts_B]), pa.int32()), views, mask=column.is_null())
    return Rows(batch.set_column(batch.schema.get_field_index("views"), "views", lists))


def _units(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """The vectors of B rows, scaled to length 1, float64 [B, D], on the grid."""
    column: Any = batch[name]
    vectors_BD = np.full((len(column), column.type.list_size), np.nan)
    vectors_BD[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    lengths_B = np.linalg.norm(vectors_BD, axis=1)
    odd = np.flatnonzero(~np.isfinite(lengths_B) | (lengths_B == 0))
    if len(odd):
        problem = "holds only zeros" if lengths_B[odd[0]] == 0 else "is missing, or holds NaN or infinity"
        raise StageError(
            NAME, f"sample '{batch['sample_id'][int(odd[0])]}': its vector '{name}' {problem}", "it points nowhere: drop such rows before this stage"
        )
    return vectors_BD / lengths_B[:, None]


def _names(schema: pa.Schema, which: str) -> list[str]:
    names = label_names(schema)
    if not names:
        raise InputError(
            f"column 'label' of {which}", "is missing or has no class names", "prototypes are of named classes: give samples with labels, or `known`"
        )
    return names
