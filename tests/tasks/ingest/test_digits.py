"""ingest.digits against scikit-learn's own arrays."""

import numpy as np
import pyarrow as pa
import pytest
import sklearn.datasets
from sklearn.datasets import load_digits

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.images import decode_batch
from stillroom.operators import Params, call
from stillroom.stored import with_hashes
from tasks.ingest.digits import digits


def read() -> pa.Table:
    schema = pa.schema(list(digits.added(Params(), {}).values()))
    (unit,) = call(digits.units, {"params": Params()})
    batches = [rows.batch for rows in digits(unit, with_hashes(schema))]
    return pa.Table.from_batches(batches, schema)


def test_gives_the_1797_digits_under_the_stated_rule():
    table, held = read(), load_digits()
    pixels_N1HW = decode_batch(table["image"].to_pylist())
    # The rule in floating point, halves upwards.
    assert np.array_equal(pixels_N1HW[:, 0], np.floor(held.images * 255 / 16 + 0.5))
    assert table["label"].to_pylist() == held.target.tolist()
    assert table["label_name"].to_pylist() == [str(label) for label in held.target]
    assert label_names(table.schema) == list("0123456789")
    assert table["source"][17].as_py() == "digits:17"
    assert set(table["width"].to_pylist()) == set(table["height"].to_pylist()) == {8}


def test_every_digit_has_its_own_id():
    ids = read()["sample_id"].to_pylist()
    assert len(set(ids)) == 1797
    assert {len(sample_id) for sample_id in ids} == {32}


def test_refuses_other_data_under_the_same_version(monkeypatch):
    held = load_digits()
    held.images[0, 0, 0] = 16
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: held)
    with pytest.raises(InputError, match="aren't those that this version"):
        read()
