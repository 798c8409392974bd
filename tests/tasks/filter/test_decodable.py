"""filter.decodable rejects what doesn't decode, row by row, and nothing else."""

from io import BytesIO

import numpy as np
import pyarrow as pa
from PIL import Image

from stillroom.images import encode_png
from tasks.filter.decodable import DecodableParams, decodable

WHOLE = encode_png(np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8))


def jpeg() -> bytes:
    out = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def reasons(*images: bytes | None, **params: object) -> list[str | None]:
    batch = pa.record_batch({"sample_id": [str(place) for place in range(len(images))], "image": pa.array(images, pa.binary())})
    rows = decodable(batch, DecodableParams(**params))
    assert rows.batch.num_rows == len(images)
    assert rows.dropped is None
    return rows.rejected.to_pylist()


def test_a_broken_image_is_rejected_with_its_reason():
    cut = jpeg()[:500]
    assert reasons(WHOLE, cut, b"text", None, jpeg()) == [
        None,
        "truncated image (bytes missing after 500)",
        "not an image (jpeg, png, gif, bmp, tiff, webp or ppm expected)",
        "no image",
        None,
    ]


def test_pixels_are_decoded_and_not_only_the_header():
    broken = bytearray(WHOLE)
    broken[WHOLE.index(b"IDAT") + 30] ^= 0xFF
    (reason,) = reasons(bytes(broken))
    assert reason.startswith("broken png")


def test_the_limit_on_pixels_is_a_parameter():
    assert reasons(WHOLE, max_pixels=199) == ["200 pixels > limit 199"]
    assert reasons(WHOLE, max_pixels=200) == [None]


def test_an_empty_batch_stays_empty():
    assert reasons() == []
