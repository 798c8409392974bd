"""ingest.digits: scikit-learn's handwritten digits, the data set that is always at hand."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.errors import InputError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Rows, Unit, source
from tasks.ingest._samples import gather, pixels_id

# What version 1 of this operator reads: BLAKE3 of the 1,797 images and labels as uint8.
_DIGEST = "112d3db595b93626c22ec25ae4d78ce54f1a88dbdc1a1efa16b7d418a0f0e0d0"


def _units() -> list[Unit]:
    return [Unit("digits", 0, 1797)]


@source(
    version=1,
    units=_units,
    adds={
        "sample_id": pa.string(),
        "image": image_field(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "label": label_field([str(digit) for digit in range(10)]),
        "label_name": pa.string(),
        "source": pa.string(),
    },
)
def digits(unit: Unit, schema: pa.Schema) -> Iterator[Rows]:
    """Read scikit-learn's 1,797 handwritten digits, 8x8 grey, ten classes.

    The values 0 to 16 become 0 to 255 by (255 v + 8) // 16, and each image a PNG; `sample_id` is the
    hash of its shape and pixels. No path names this data, so the operator's version does: version 1
    means the bytes of the digest in this file, and other data in another scikit-learn is refused.

    Raises:
        InputError: scikit-learn's digits aren't those of this version.
    """
    from sklearn.datasets import load_digits

    held = load_digits()
    values_NHW, labels_N = held.images.astype(np.uint8), held.target.astype(np.uint8)
    if blake3(values_NHW.tobytes() + labels_N.tobytes()).hexdigest() != _DIGEST:
        raise InputError("scikit-learn's digits", "aren't those that this version of ingest.digits stands for", "install the scikit-learn of constraints.txt")
    pixels_NHW = ((values_NHW.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
    yield from gather(((_sample(row, pixels_NHW[row], int(labels_N[row])), None) for row in range(unit.start, unit.stop)), schema)


def _sample(row: int, pixels_HW: np.ndarray, label: int) -> dict[str, object]:
    return {
        "sample_id": pixels_id(pixels_HW),
        "image": encode_png(pixels_HW[..., None]),
        "width": 8,
        "height": 8,
        "format": "png",
        "label": label,
        "label_name": str(label),
        "source": f"digits:{row}",
    }
