"""Quantities as recipes write them."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

__all__ = ["Fraction", "Gain"]

_PERCENT = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*%")


def _percent(value: Any) -> Any:
    """`"12.5%"` as 0.125 and `"-0.5%"` as -0.005; everything else as it is."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    # By Decimal, so that 12.1% and 0.121 are one number, and one fingerprint.
    return float(Decimal(match[1]) / 100) if match else value


_AS_WRITTEN = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^\s*{_PERCENT.pattern}\s*$"}]})

# A share of a whole, written 0.1 or 10%: a number without a percent sign is never taken for a percentage.
Fraction = Annotated[float, BeforeValidator(_percent), Field(ge=0, le=1), _AS_WRITTEN]
# A difference of two shares.
Gain = Annotated[float, BeforeValidator(_percent), Field(ge=-1, le=1), _AS_WRITTEN]
