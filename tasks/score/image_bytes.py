"""score.image_bytes: how many bytes each image takes as it is stored."""

import pyarrow as pa
import pyarrow.compute as pc

from stillroom.operators import Rows, row


@row(version=1, requires=["image"], adds={"image_bytes": pa.int64()}, keeps_rows=True)
def image_bytes(batch: pa.RecordBatch) -> Rows:
    """Give each image the number of bytes that it is stored in, by which `keep_bytes` chooses.

    Args:
        batch: B rows with `image`, encoded bytes.

    Returns:
        The B rows with `image_bytes`, int64; 0 where there is no image.
    """
    sizes_B = pc.fill_null(pc.binary_length(batch["image"]), 0).cast(pa.int64())
    return Rows(batch.append_column("image_bytes", sizes_B))
