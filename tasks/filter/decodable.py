"""filter.decodable: reject the images that don't decode."""

import pyarrow as pa
from pydantic import Field

from stillroom.images import MAX_PIXELS, ImageFault, decode
from stillroom.operators import Params, Rows, row


class DecodableParams(Params):
    """Parameters of `filter.decodable`."""

    max_pixels: int = Field(default=MAX_PIXELS, gt=0, description="Reject an image of more pixels, by its header.")


@row(version=1, requires=["image"], adds={})
def decodable(batch: pa.RecordBatch, params: DecodableParams) -> Rows:
    """Decode every image in full, and reject those that don't decode, with the reason.

    A row that passes holds an image that every later stage and every trainer can decode.

    Args:
        batch: B rows with `image`, encoded bytes; null is rejected too.
    """
    return Rows(batch, rejected=pa.array([_fault(value, params.max_pixels) for value in batch["image"].to_pylist()], pa.string()))


def _fault(value: bytes | None, max_pixels: int) -> str | None:
    if value is None:
        return "no image"
    try:
        decode(value, max_pixels=max_pixels)
    except ImageFault as fault:
        return str(fault)
    return None
