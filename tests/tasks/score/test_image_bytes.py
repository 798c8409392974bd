"""score.image_bytes: the length of what is stored."""

import pyarrow as pa

import stillroom
from stillroom.fields import image_field


def test_counts_the_encoded_bytes_and_none_where_there_is_no_image():
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field()])
    table = pa.table([["a", "b", "c"], [b"12345", None, b""]], schema=schema)
    assert stillroom.apply("score.image_bytes", table).kept["image_bytes"].to_list() == [5, 0, 0]
