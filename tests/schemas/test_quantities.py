"""Shares and sizes as recipes write them: one number however it is written, and what isn't one is refused."""

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from schemas.quantities import Bytes, Fraction, Gain

BYTES, FRACTION, GAIN = TypeAdapter(Bytes), TypeAdapter(Fraction), TypeAdapter(Gain)


@given(st.integers(0, 10_000))
def test_a_percentage_and_its_decimal_are_one_number(hundredths):
    written = f"{hundredths // 100}.{hundredths % 100:02}"
    decimal = f"{hundredths // 10_000}.{hundredths % 10_000:04}"
    assert FRACTION.validate_python(f"{written}%") == FRACTION.validate_python(float(decimal))


@pytest.mark.parametrize(("written", "value"), [("5%", 0.05), ("0 %", 0.0), ("100%", 1.0), (".5%", 0.005), (0.25, 0.25), (1, 1.0)])
def test_shares(written, value):
    assert FRACTION.validate_python(written) == value
    jsonschema.validate(written, FRACTION.json_schema())


@pytest.mark.parametrize("written", ["101%", 5, -0.1, "-1%", "five", "5%%", None, "nan", float("nan")])
def test_what_is_no_share_is_refused(written):
    with pytest.raises(ValidationError):
        FRACTION.validate_python(written)


def test_a_gain_may_be_a_loss():
    assert GAIN.validate_python("-0.5%") == -0.005
    with pytest.raises(ValidationError):
        GAIN.validate_python("-101%")


@pytest.mark.parametrize(
    ("written", "size"), [("200MB", 200_000_000), ("1.5 kB", 1500), ("2KiB", 2048), (" 7 ", 7), ("12B", 12), ("0.5GiB", 1 << 29), (9, 9), ("1TB", 10**12)]
)
def test_bytes(written, size):
    assert BYTES.validate_python(written) == size
    jsonschema.validate(written, BYTES.json_schema())


@pytest.mark.parametrize("written", ["0", 0, "-1MB", "1.5B", "many", "1mb", "5%", 2.5, None, "1e3"])
def test_what_is_no_number_of_bytes_is_refused(written):
    with pytest.raises(ValidationError):
        BYTES.validate_python(written)
