"""What a stored view's fields hold: every number comes back, whatever the kind, and the first kinds keep their form."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from stillroom.view_fields import VIEW_FIELDS, VIEW_TYPE, as_stored, from_numbers, no_numbers, to_numbers, to_records, view_type

# The least and the most that a view may hold of each number; of others, what a byte holds.
RANGES = {"crop": (0, 8192), "shift": (-32512, 32512), "rotate": (-18000, 18000), "scale": (5000, 15000), "hue": (-1800, 1800)}
RANGES |= {"erase": (0, 8192), "partner_view": (0, 65535), "mix_weight": (0, 65535), "mix_": (0, 8192), "random_field": (-127, 127), "flip": (0, 1)}
RANGES |= {name: (0, 2000) for name in ("brightness", "contrast", "saturation")}


def drawn(kind: pa.StructType, count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = no_numbers(kind, (count,))
    for name, zeros in columns.items():
        low, high = next((told for start, told in RANGES.items() if name.startswith(start)), (0, 255))
        columns[name] = np.array([None, "b"], object)[rng.integers(0, 2, count)] if name == "partner" else rng.integers(low, high + 1, zeros.shape)
    return columns


@given(st.sets(st.sampled_from(list(VIEW_FIELDS))), st.integers(1, 8), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_every_number_comes_back_and_from_any_slice(kinds, ops, count, seed):
    kind = view_type(sorted(kinds), ops)
    numbers = drawn(kind, count, seed)
    views = from_numbers(numbers, kind)
    assert views.type == kind and len(views) == count
    for part in (slice(0, count), slice(count // 3, count - count // 4)):
        found = to_numbers(views[part])
        assert found.keys() == numbers.keys() - {"partner"}
        assert all((values == numbers[name][part]).all() for name, values in found.items())
        assert {name: values.dtype for name, values in found.items()} == {name: values.dtype for name, values in as_stored(numbers, kind).items()}
    assert [record.get("partner") for record in to_records(views)] == list(numbers.get("partner", [None] * count))


def test_records_are_the_numbers_of_each_view_in_pythons_own():
    kind = view_type(("crop", "flip", "erase"))
    box = {"erase_y": [0, 300], "erase_x": [0, 2], "erase_h": [0, 3], "erase_w": [0, 4]}
    views = from_numbers({"crop_y": [0, 1], "crop_x": [0, 2], "crop_h": [8, 5], "crop_w": [8, 6], "flip": [False, True]} | box, kind)
    # Two bytes each, the low one first: 300 is 44 and 1.
    assert views.field("erase").to_pylist() == [bytes(8), bytes([44, 1, 2, 0, 3, 0, 4, 0])]
    plain, other = to_records(views)
    assert plain == {"crop_y": 0, "crop_x": 0, "crop_h": 8, "crop_w": 8, "flip": False, "erase_y": 0, "erase_x": 0, "erase_h": 0, "erase_w": 0}
    assert other == {"crop_y": 1, "crop_x": 2, "crop_h": 5, "crop_w": 6, "flip": True, "erase_y": 300, "erase_x": 2, "erase_h": 3, "erase_w": 4}


def test_views_of_the_first_kinds_are_as_stores_hold_them():
    told = {"crop_y": "int32", "crop_x": "int32", "crop_h": "int32", "crop_w": "int32", "flip": "bool"}
    told |= {name: "int16" for name in ("shift_y", "shift_x", "rotate", "scale_y", "scale_x")}
    assert {field.name: str(field.type) for field in VIEW_TYPE} == told
    assert not any(field.metadata for field in VIEW_TYPE)


def test_each_later_kind_is_one_leaf_and_a_partner_one_more():
    kind = view_type(tuple(VIEW_FIELDS), 2)
    later = {field.name: str(field.type) for field in list(kind)[len(VIEW_TYPE) :]}
    assert later == {
        "quarter_turns": "uint8",
        "randaugment": "fixed_size_binary[4]",
        "jitter": "fixed_size_binary[8]",
        "random_field": "fixed_size_binary[48]",
        "erase": "fixed_size_binary[8]",
        "mix": "fixed_size_binary[14]",
        "partner": "string",
        "permutation": "uint8",
    }
