"""Quantities as recipes write them."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["Fraction"]

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%")


def _percent(value: Any) -> Any:
    """`"12.5%"` as 0.125; everything else as it is."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1]) / 100 if match else value


# A share of a whole, written 0.1 or 10%: a number without a percent sign is never taken for a percentage.
Fraction = Annotated[float, BeforeValidator(_percent), Field(ge=0, le=1)]
