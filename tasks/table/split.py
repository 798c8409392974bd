"""table.split: training, validation and test, by the hash of each row's group."""

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.quantities import Fraction
from stillroom.fields import split_field
from stillroom.operators import Draw, Params, Rows, row


class SplitParams(Params):
    """Parameters of `table.split`."""

    validation: Fraction = Field(default=0.1, description="Share of the groups that goes to validation.")
    test: Fraction = Field(default=0.1, description="Share of the groups that goes to test.")
    group: str | None = Field(default=None, description="Rows with one value of this column stay together. Left out, each row is a group.")


def _requires(params: SplitParams) -> list[str]:
    return [params.group] if params.group else []


@row(version=1, requires=_requires, adds={"split": split_field()}, keeps_rows=True, random=True)
def split(batch: pa.RecordBatch, params: SplitParams, draw: Draw) -> Rows:
    """Give each row a split by the hash of its group, so that it keeps it when the data grows."""
    keys = [str(key) for key in batch[params.group or "sample_id"].to_pylist()]
    place = draw.uniform(keys, 1)[:, 0]
    names = np.where(place < params.test, "test", np.where(place < params.test + params.validation, "validation", "train"))
    return Rows(batch.append_column("split", pa.array(names.tolist(), pa.string())))
