"""Digests: the same for any layout, another for any other value."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from stillroom.digests import BLOCK_ROWS, TableDigest, json_digest

SCHEMA = pa.schema([
    ("id", pa.int64()), ("name", pa.string()), ("flag", pa.bool_()), ("numbers", pa.list_(pa.float32())), ("pair", pa.list_(pa.int16(), 2)),
    ("inner", pa.struct([("x", pa.int8()), ("y", pa.string())])), ("raw", pa.binary(4)), ("half", pa.float16()),
])  # fmt: skip
ROW = st.fixed_dictionaries({
    "id": st.none() | st.integers(-(2**40), 2**40), "name": st.none() | st.text(max_size=5), "flag": st.none() | st.booleans(),
    "numbers": st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=3), "pair": st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)).map(list),
    "inner": st.none() | st.fixed_dictionaries({"x": st.none() | st.integers(0, 9), "y": st.none() | st.text(max_size=3)}), "raw": st.none() | st.binary(min_size=4, max_size=4),
    "half": st.none() | st.floats(width=16, allow_nan=False),
})  # fmt: skip


def digest(batches: list[pa.RecordBatch], schema: pa.Schema = SCHEMA) -> str:
    made = TableDigest(schema)
    for batch in batches:
        made.update(batch)
    return made.hexdigest()


@given(st.lists(ROW, min_size=1, max_size=30), st.integers(1, 10), st.integers(0, 5))
def test_cuts_slices_and_column_order_do_not_count(rows, cut, junk):
    table = pa.Table.from_pylist(rows, SCHEMA)
    sliced = pa.concat_tables([table.slice(0, junk), table]).combine_chunks().slice(min(junk, table.num_rows))
    turned = pa.schema(list(reversed(SCHEMA)))
    assert digest(table.to_batches(max_chunksize=cut)) == digest(sliced.to_batches()) == digest(table.select(turned.names).to_batches(), turned)


@given(st.lists(ROW, min_size=2, max_size=8), st.data())
def test_another_value_or_order_is_another_digest(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    changed = [dict(row) for row in rows]
    changed[at]["id"] = (rows[at]["id"] or 0) + 1
    whole = digest(pa.Table.from_pylist(rows, SCHEMA).to_batches())
    assert whole != digest(pa.Table.from_pylist(changed, SCHEMA).to_batches())
    if rows[0] != rows[-1]:
        assert whole != digest(pa.Table.from_pylist([rows[-1], *rows[1:-1], rows[0]], SCHEMA).to_batches())


def test_null_empty_and_neighbours_are_told_apart():
    schema = pa.schema([("s", pa.string())])
    texts = [["a", "bc"], ["ab", "c"], ["", "abc"], [None, "abc"], ["abc"]]
    found = {digest(pa.table({"s": pa.array(text, pa.string())}).to_batches(), schema) for text in texts}
    assert len(found) == len(texts)


def test_values_under_a_null_do_not_count():
    arrays = [pa.Array.from_buffers(pa.int64(), 2, [pa.array([1, None]).buffers()[0], pa.array([1, hidden]).buffers()[1]]) for hidden in (7, 8)]
    schema = pa.schema([("x", pa.int64())])
    assert len({digest([pa.record_batch([array], schema=schema)], schema) for array in arrays}) == 1


def test_leaves_place_a_difference():
    rows = list(range(2 * BLOCK_ROWS + 5))
    made = [TableDigest(pa.schema([("x", pa.int64())])) for _ in range(2)]
    made[0].update(pa.record_batch({"x": pa.array(rows)}))
    made[1].update(pa.record_batch({"x": pa.array(rows[:BLOCK_ROWS] + [-1] + rows[BLOCK_ROWS + 1 :])}))
    assert made[0].hexdigest() != made[1].hexdigest()
    assert [a == b for a, b in zip(made[0].leaves["x"], made[1].leaves["x"], strict=True)] == [True, False, True]


def test_json_digest_is_typed():
    assert len({json_digest(value) for value in (1, 1.0, "1", True, [1], {"1": 1}, None)}) == 7
