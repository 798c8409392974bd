"""schemas.expectations: what is declared is judged, by Great Expectations itself, over all rows and in bounded memory."""

import gc
import tracemalloc
from collections.abc import Iterator

import pyarrow as pa
import pytest

from schemas import expectations
from schemas.expectations import Check, CheckResult, columns_of, run_checks, suite_for
from schemas.recipe import Require
from stillroom.digests import canonical_json
from stillroom.errors import GateError, RecipeErrors
from stillroom.fields import image_field

NAMES = ["cat", "dog"]
SAMPLES = pa.table(
    {
        "sample_id": ["a", "b", "c", "d"],
        "image_hash": pa.array([b"0" * 16] * 4, pa.binary(16)),
        "width": pa.array([8, 8, 8, 8], pa.int32()),
        "height": pa.array([8, 8, 8, 8], pa.int32()),
        "label": pa.array([0, 1, 1, 0], pa.int64()),
        "label_name": ["cat", "dog", "dog", "cat"],
        "split": ["train", "train", "validation", "test"],
        "views": [[1, 2], [3, 4], None, None],
        "score": pa.array([0.1, 0.5, 0.9, None], pa.float32()),
        "Score": [1, 2, 3, 4],
        "its 'odd'": ["p", "q", "r", None],
        "big": pa.array([2**64 - 1, 2**63, 0, 1], pa.uint64()),
        "synthetic": [False, True, False, False],
    }
)


def changed(**columns: list) -> pa.Table:
    table = SAMPLES
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return table


def judged(table: pa.Table, *declared: dict, names: list[str] | None = NAMES) -> list[CheckResult]:
    checks = suite_for(table.schema, Require.model_validate({"checks": declared}), names)
    results = run_checks(checks, table.select(columns_of(checks)).to_batches(max_chunksize=3))
    assert [result.name for result in results] == [check.name for check in checks]
    return results


def failures(table: pa.Table, *declared: dict) -> dict[str, tuple[int, list[str]]]:
    return {result.name: (result.failed, result.examples) for result in judged(table, *declared) if not result.ok}


def faults(*declared: dict, schema: pa.Schema = SAMPLES.schema) -> list[str]:
    with pytest.raises(RecipeErrors) as raised:
        suite_for(schema, Require.model_validate({"checks": declared}), NAMES)
    return str(raised.value).splitlines()


def test_a_sound_table_passes_all_that_its_schema_means():
    results = judged(SAMPLES)
    assert [(result.name, result.ok, result.rows) for result in results] == [
        ("schema: at least 1 row", True, 4),
        ("schema: sample_id not null", True, 4),
        ("schema: sample_id unique", True, 4),
        ("schema: image_hash not null", True, 4),
        ("schema: width at least 1", True, 4),
        ("schema: height at least 1", True, 4),
        ("schema: split not null", True, 4),
        ("schema: split in train, validation, test", True, 4),
        ("schema: label not null", True, 4),
        ("schema: label between 0 and 1", True, 4),
        ("schema: label_name in the class names", True, 4),
        ("schema: label_name is the name of label", True, 4),
        ("schema: views the same number in each row", True, 4),
    ]


def test_views_that_were_chosen_may_differ_in_number():
    views = SAMPLES.schema.field("views").with_metadata({b"stillroom.views_label": canonical_json({"num_classes": 2, "varies": True})})
    assert not failures(SAMPLES.set_column(7, views, pa.array([[1, 2], [3], [], None], views.type)))


def test_a_table_without_labels_is_not_asked_for_them():
    assert not [result for result in judged(SAMPLES.select(["sample_id", "label"]), names=None) if "label" in result.name]


def test_names_the_rows_on_which_each_schema_check_fails():
    table = pa.table(
        {
            "sample_id": ["a", "b", "b", None, "e", "f"],
            "image_hash": pa.array([b"0" * 16, b"0" * 16, b"0" * 16, b"0" * 16, None, None], pa.binary(16)),
            "width": pa.array([0, 8, 8, 8, 8, -1], pa.int32()),
            "height": pa.array([8, 8, 8, 8, 0, 8], pa.int32()),
            "split": ["trian", "train", "train", "test", None, "test"],
            "label": pa.array([0, 9, 1, None, -1, 1], pa.int64()),
            "label_name": ["cat", "cow", "dog", "dog", "cat", "cat"],
            "views": [[1, 2], [3, 4], [5], None, None, None],
        }
    )
    assert failures(table) == {
        "schema: sample_id not null": (1, ["(no sample_id)"]),
        "schema: sample_id unique": (2, ["b"]),
        "schema: image_hash not null": (2, ["e", "f"]),
        "schema: width at least 1": (2, ["a", "f"]),
        "schema: height at least 1": (1, ["e"]),
        "schema: split not null": (1, ["e"]),
        "schema: split in train, validation, test": (1, ["a"]),
        "schema: label not null": (1, ["(no sample_id)"]),
        "schema: label between 0 and 1": (2, ["b", "e"]),
        "schema: label_name in the class names": (1, ["b"]),
        "schema: label_name is the name of label": (3, ["b", "e", "f"]),
        "schema: views the same number in each row": (6, []),
    }


DECLARED = [
    ({"column": "score", "between": [0.1, 0.9]}, {}),
    ({"column": "score", "between": [None, 0.5]}, {"recipe: score at most 0.5": (1, ["c"])}),
    ({"column": "score", "between": [0.5, None]}, {"recipe: score at least 0.5": (1, ["a"])}),
    ({"column": "score", "equals": 0.1}, {"recipe: score equals 0.1": (2, ["b", "c"])}),
    ({"column": "score", "not_null": True}, {"recipe: score not null": (1, ["d"])}),
    ({"column": "Score", "in": [1, 2, 3]}, {"recipe: Score in [1, 2, 3]": (1, ["d"])}),
    ({"column": "Score", "unique": True}, {}),
    ({"column": "label", "unique": True}, {"recipe: label unique": (4, ["a", "b", "c", "d"])}),
    ({"column": "its 'odd'", "in": ["p", "q"]}, {"recipe: its 'odd' in ['p', 'q']": (1, ["c"])}),
    ({"column": "big", "between": [0, 2**63 - 1]}, {f"recipe: big between 0 and {2**63 - 1}": (2, ["a", "b"])}),
    ({"column": "synthetic", "equals": False}, {"recipe: synthetic equals False": (1, ["b"])}),
    ({"column": "views", "not_null": True}, {"recipe: views not null": (2, ["c", "d"])}),
    ({"rows": {"min": 4, "max": 4}}, {}),
    ({"rows": {"min": 5}}, {"recipe: at least 5 rows": (4, [])}),
    ({"rows": {"max": 3}}, {"recipe: at least 1 and at most 3 rows": (4, [])}),
]


def test_names_the_rows_on_which_each_declared_check_fails():
    assert failures(SAMPLES, *(check for check, _ in DECLARED)) == {name: failed for _, expected in DECLARED for name, failed in expected.items()}


def test_nan_does_not_slip_through_as_null():
    table = changed(score=[0.1, float("nan"), float("inf"), None])
    assert failures(table, {"column": "score", "between": [0, 1]}) == {"recipe: score not NaN": (1, ["b"]), "recipe: score between 0 and 1": (1, ["c"])}


def test_an_empty_table_fails_and_only_by_its_row_count():
    (failed,) = [result for result in judged(SAMPLES.slice(0, 0)) if not result.ok]
    assert (failed.name, str(failed)) == ("schema: at least 1 row", "schema: at least 1 row: found 0")


def test_an_empty_table_passes_where_the_recipe_allows_it():
    assert failures(SAMPLES.slice(0, 0), {"rows": {"min": 0}}) == {}


def test_says_in_one_line_which_rows_fail():
    result = next(result for result in judged(changed(width=[0, 0, 0, 0])) if not result.ok)
    assert str(result) == "schema: width at least 1: fails on 4 of 4 rows (a, b, c, …)"
    assert result.observed == [0]


def test_says_what_a_declared_check_cannot_judge():
    schema = pa.schema([*SAMPLES.schema, image_field()])
    assert faults(
        {"column": "scor", "not_null": True}, {"column": "image", "not_null": True}, {"column": "views", "unique": True},
        {"column": "split", "between": [0, 1]}, {"column": "label", "equals": "cat"}, {"column": "synthetic", "in": [1]},
        schema=schema,
    ) == [
        "recipe: publish.require.checks.0: the published table has no column 'scor'; did you mean 'score'?",
        "recipe: publish.require.checks.1: 'image' is heavy: it isn't read by gates; check 'image_hash'",
        "recipe: publish.require.checks.2: 'views' is list<item: int64>, of which only not_null can be checked",
        "recipe: publish.require.checks.3: 'split' is string, and between is for numbers",
        "recipe: publish.require.checks.4: 'cat' can't be a value of 'label', which is int64",
        "recipe: publish.require.checks.5: 1 can't be a value of 'synthetic', which is bool",
    ]  # fmt: skip


def test_a_check_that_was_not_judged_fails_the_gate(monkeypatch):
    validate = expectations._validate
    monkeypatch.setattr(expectations, "_validate", lambda *args: {place: found for place, found in validate(*args).items() if place})
    with pytest.raises(GateError, match="13 checks were declared and 12 were judged"):
        judged(SAMPLES)


def test_a_check_that_could_not_be_judged_fails_the_gate():
    check = Check("split like a pattern", "expect_column_values_to_match_regex", "split", {"regex": "["}, needs=("split",))
    with pytest.raises(GateError, match="'gates': 'split like a pattern' could not be judged: "):
        run_checks([check], SAMPLES.to_batches())


def test_memory_does_not_grow_with_rows_even_if_all_of_them_fail():
    def batches(rows: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 1000):
            ids = [f"{row:08d}" for row in range(start, start + 1000)]
            yield pa.record_batch({"sample_id": ids, "label": pa.array([9] * 1000), "label_name": ["cow"] * 1000})

    checks = suite_for(next(batches(1000)).schema, Require(), NAMES)
    run_checks(checks, batches(1000))  # what is imported doesn't count
    gc.collect()
    tracemalloc.start()
    try:
        results = run_checks(checks, batches(50_000))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {(result.failed, len(result.examples)) for result in results if not result.ok} == {(50_000, 20)}
    # 50,000 ids alone take 2.8 MB as Python's strings; a batch and Great Expectations' own take 1.1 MB.
    assert peak_bytes < 2_000_000
