"""What tests of distillations share: digits as a table, and a run of an operator that may be stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field, with_meaning
from stillroom.images import encode_png
from stillroom.operators import Operator, Unit, Work
from stillroom.tables import MemoryTable


class Stopped(Exception):
    """The process is gone."""


def digits(rows: range, names: list[str] | None = None) -> MemoryTable:
    """scikit-learn's digits; the first ten are 0 to 9."""
    from sklearn.datasets import load_digits

    pixels_NHW, labels = load_digits(return_X_y=True)
    images = [encode_png((pixels_NHW[row].reshape(8, 8, 1) * 15).astype(np.uint8)) for row in rows]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names or [str(digit) for digit in range(10)])])
    return MemoryTable(pa.table([[f"d{row}" for row in rows], images, labels[list(rows)]], schema=schema))


def distil(
    operator: Operator, inputs: Mapping[str, MemoryTable], params: Mapping[str, Any], scratch: Path, saved: dict | None = None, stop_at: int | None = None
) -> tuple[pa.Table, dict]:
    """The rows and the metrics of a distillation; it is stopped when iteration `stop_at` is done."""
    torch.set_num_threads(1)
    asked = operator.params(**params)
    schema = pa.schema([with_meaning(name, field) for name, field in operator.added(asked, {"samples": inputs["samples"].schema}).items()])
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(7, operator.name), saved={} if saved is None else saved)

    def report(done: float, total: float) -> None:
        if done == stop_at:
            raise Stopped

    work.report = report
    return pa.Table.from_batches(list(operator(Unit("images"), inputs, asked, work, schema)), schema), work.metrics
