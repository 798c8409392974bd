"""Quantities as recipes write them."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

__all__ = ["Bytes", "Fraction", "Gain"]

_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"([0-9]+\.?[0-9]*|\.[0-9]+)\s*({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
_PERCENT = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*%")


def _percent(value: Any) -> Any:
    """`"12.5%"` as 0.125 and `"-0.5%"` as -0.005; everything else as it is."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    # By Decimal, so that 12.1% and 0.121 are one number, and one fingerprint.
    return float(Decimal(match[1]) / 100) if match else value


def _bytes(value: Any) -> Any:
    """`"1.5MB"` as 1500000; everything else as it is."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    size = Decimal(match[1]) * _UNITS[match[2]] if match else None
    return int(size) if size is not None and size == int(size) else value


_AS_WRITTEN = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^\s*{_PERCENT.pattern}\s*$"}]})

# A share of a whole, written 0.1 or 10%: a number without a percent sign is never taken for a percentage.
Fraction = Annotated[float, BeforeValidator(_percent), Field(ge=0, le=1), _AS_WRITTEN]
# A difference of two shares.
Gain = Annotated[float, BeforeValidator(_percent), Field(ge=-1, le=1), _AS_WRITTEN]
# A number of bytes, written 1500000 or 1.5MB; MB are 10^6, MiB 2^20.
_SIZE_AS_WRITTEN = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": rf"^\s*{_SIZE.pattern}\s*$"}]})
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1), _SIZE_AS_WRITTEN]
