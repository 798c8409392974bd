"""Gates on data: checks made from a table's schema and the recipe, run by Great Expectations over all rows.

Great Expectations reads neither Arrow nor Lance, so the columns that the checks name are streamed
into a temporary SQLite file, where it counts in SQL: memory stays bounded whatever the row count.
Images never go there. This is the only file that imports Great Expectations.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.checks import Between, DeclaredCheck, Equals, NotNull, RowCount, Unique
from schemas.recipe import SPLITS, Require
from schemas.wording import near, shown
from stillroom.errors import GateError, RecipeError, RecipeErrors
from stillroom.fields import light_names
from stillroom.views import LABEL

__all__ = ["Check", "CheckResult", "columns_of", "run_checks", "suite_for"]

UNIQUE = "expect_column_values_to_be_unique"
NOT_NULL = "expect_column_values_to_not_be_null"
BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"
DISTINCT = "expect_column_unique_value_count_to_be_between"
ROWS = "expect_table_row_count_to_be_between"

MAX_EXAMPLES = 20
# Rows that travel into SQLite at once; a batch of the scan may be larger.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Check:
    """One declared expectation.

    Args:
        name: for people: where it comes from, and what must hold.
        expectation: Great Expectations' name for it.
        column: the column that it is about; "" for the whole table.
        arguments: of the expectation, its column aside.
        derive: makes what is judged from the columns in `needs`, where it isn't the column as it is.
        needs: the columns that it reads.
    """

    name: str
    expectation: str
    column: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    derive: Callable[[pa.RecordBatch], pa.Array] | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What became of a check: over how many rows, on how many it failed, and up to 20 of their sample ids.

    A check of the table as a whole has no such rows: where it fails, it fails on all, and `observed` says what was found.
    """

    name: str
    expectation: str
    column: str
    ok: bool
    rows: int
    failed: int
    examples: list[str] = field(default_factory=list)
    observed: Any = None

    def __str__(self) -> str:
        if self.ok:
            return f"{self.name}: holds for {self.rows} rows"
        if not self.examples:
            return f"{self.name}: found {shown(self.observed)}"
        more = ", …" if self.failed > 3 else ""
        return f"{self.name}: fails on {self.failed} of {self.rows} rows ({', '.join(self.examples[:3])}{more})"


def suite_for(schema: pa.Schema, require: Require, label_names: Sequence[str] | None) -> list[Check]:
    """The checks of a published table: what its schema means, then what the recipe declares.

    Args:
        schema: of the table as published.
        require: the recipe's gates; a declared `rows` stands in for "at least one row".
        label_names: class names in the order of `label`, if it has any.

    Raises:
        RecipeErrors: declared checks on columns that aren't there, or can't be judged so.
    """
    bounds = [check.rows for check in require.checks if isinstance(check, RowCount)]
    checks = [] if bounds else [Check("schema: at least 1 row", ROWS, arguments={"min_value": 1})]
    checks += [check for check in _schema_checks(schema, label_names) if set(check.needs) <= set(schema.names)]
    faults: list[RecipeError] = []
    for place, declared in enumerate(require.checks):
        where = f"publish.require.checks.{place}"
        try:
            checks += _declared(declared, schema)
        except _Unfit as unfit:
            problem, hint = (*unfit.args, "")[:2]
            faults.append(RecipeError("", where, problem, hint))
    if faults:
        raise RecipeErrors(*faults)
    return list({check.name: check for check in checks}.values())


def columns_of(checks: Iterable[Check]) -> list[str]:
    """The columns that must be read for these checks, `sample_id` among them."""
    return [*dict.fromkeys(["sample_id", *chain.from_iterable(check.needs for check in checks)])]


def run_checks(checks: Sequence[Check], batches: Iterable[pa.RecordBatch]) -> list[CheckResult]:
    """Judge every check over all rows, in bounded memory; results in the order of the checks.

    Args:
        checks: from `suite_for`.
        batches: the whole table, with the columns that `columns_of` names.

    Raises:
        GateError: Great Expectations judged another number of checks than were declared, or couldn't judge one.
    """
    makers, judged = _places(checks)
    with TemporaryDirectory(prefix="stillroom-gates-") as folder:
        path = Path(folder) / "samples.sqlite"
        rows = _load(path, batches, makers)
        found = _validate(path, checks, judged)
    if len(found) != len(checks):
        raise GateError("gates", f"{len(checks)} checks were declared and {len(found)} were judged", "nothing is published on half a judgement")
    return [_result(check, found[place], rows) for place, check in enumerate(checks)]


class _Unfit(Exception):
    """A declared check that this table can't be judged by: a problem, and a way out."""


def _schema_checks(schema: pa.Schema, label_names: Sequence[str] | None) -> list[Check]:
    """What the usual columns mean; those of columns that a table lacks fall away."""
    checks = [
        _plain("schema: sample_id not null", NOT_NULL, "sample_id"),
        _plain("schema: sample_id unique", UNIQUE, "sample_id"),
        _plain("schema: image_hash not null", NOT_NULL, "image_hash"),
        _plain("schema: width at least 1", BETWEEN, "width", min_value=1),
        _plain("schema: height at least 1", BETWEEN, "height", min_value=1),
        _plain("schema: split not null", NOT_NULL, "split"),
        _plain(f"schema: split in {', '.join(SPLITS)}", IN_SET, "split", value_set=list(SPLITS)),
    ]
    if label_names:
        names = list(label_names)
        named = partial(_label_has_name, names=names)
        checks += [
            _plain("schema: label not null", NOT_NULL, "label"),
            _plain(f"schema: label between 0 and {len(names) - 1}", BETWEEN, "label", min_value=0, max_value=len(names) - 1),
            _plain("schema: label_name in the class names", IN_SET, "label_name", value_set=names),
            Check("schema: label_name is the name of label", IN_SET, "label_name", {"value_set": [1]}, named, ("label", "label_name")),
        ]
    told = (schema.field("views").metadata or {}).get(LABEL) if "views" in schema.names else None
    if told and json.loads(told).get("varies"):
        return checks  # views were chosen, and a row has as many as were fit
    # One count for all rows that have views, whatever it is: fewer of one is a fault on the way.
    count = partial(_list_lengths, name="views")
    return [*checks, Check("schema: views the same number in each row", DISTINCT, "views", {"max_value": 1}, count, ("views",))]


def _declared(check: DeclaredCheck, schema: pa.Schema) -> list[Check]:
    """The checks that a declared one comes to; _Unfit(problem, hint) where it can't be judged."""
    if isinstance(check, RowCount):
        bounds = check.rows
        upper = f" and at most {bounds.max}" if bounds.max is not None else ""
        return [Check(f"recipe: at least {bounds.min}{upper} rows", ROWS, arguments={"min_value": bounds.min, "max_value": bounds.max})]
    column = check.column
    if column not in schema.names:
        raise _Unfit(f"the published table has no column '{column}'", near(column, light_names(schema)))
    if column not in light_names(schema):
        raise _Unfit(f"'{column}' is heavy: it isn't read by gates", f"check '{column}_hash'" if f"{column}_hash" in schema.names else "")
    type_ = schema.field(column).type
    if isinstance(check, NotNull):
        return [_plain(f"recipe: {column} not null", NOT_NULL, column)]
    if pa.types.is_nested(type_):
        raise _Unfit(f"'{column}' is {type_}, of which only not_null can be checked")
    if isinstance(check, Unique):
        return [_plain(f"recipe: {column} unique", UNIQUE, column)]
    nan = Check(f"recipe: {column} not NaN", IN_SET, column, {"value_set": [0]}, partial(_is_nan, name=column), (column,))
    # SQLite keeps NaN as null, and null passes what judges values.
    finite = [nan] if pa.types.is_floating(type_) else []
    if isinstance(check, Between):
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
            raise _Unfit(f"'{column}' is {type_}, and between is for numbers")
        low, high = check.between
        text = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        ends = {end: _literal(value, column, type_) for end, value in (("min_value", low), ("max_value", high)) if value is not None}
        return [*finite, _plain(f"recipe: {column} {text}", BETWEEN, column, **ends)]
    values = [check.equals] if isinstance(check, Equals) else list(check.values)
    name = f"recipe: {column} equals {shown(values[0])}" if isinstance(check, Equals) else f"recipe: {column} in {shown(values)}"
    return [*finite, _plain(name, IN_SET, column, value_set=[_literal(value, column, type_) for value in values])]


def _plain(name: str, expectation: str, column: str, **arguments: Any) -> Check:
    return Check(name, expectation, column, arguments, None, (column,))


def _literal(value: Any, column: str, type_: pa.DataType) -> Any:
    """A value of the recipe as SQLite will hold the column's equal value."""
    fits = (
        isinstance(value, bool) if pa.types.is_boolean(type_)
        else isinstance(value, str) if pa.types.is_string(type_) or pa.types.is_large_string(type_)
        else isinstance(value, int | float) and not isinstance(value, bool) and (pa.types.is_integer(type_) or pa.types.is_floating(type_))
    )  # fmt: skip
    if not fits:
        raise _Unfit(f"{shown(value)} can't be a value of '{column}', which is {type_}")
    if pa.types.is_boolean(type_):
        return int(value)
    if pa.types.is_floating(type_):
        # 0.1 in a float32 column isn't 0.1: the nearest float32 is meant.
        return float(np.asarray(value, type_.to_pandas_dtype()))
    return value


def _list_lengths(batch: pa.RecordBatch, name: str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.list_value_length(batch[name])


def _is_nan(batch: pa.RecordBatch, name: str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.is_nan(batch[name])


def _label_has_name(batch: pa.RecordBatch, names: list[str]) -> pa.Array:
    """Whether `label_name` is the name of `label`; null where either is null."""
    import pyarrow.compute as pc

    labels = batch["label"]
    inside = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
    expected = pc.take(pa.array(names), pc.if_else(inside, labels, None))
    return pc.if_else(pc.fill_null(inside, True), pc.equal(expected, batch["label_name"]), False)


def _places(checks: Sequence[Check]) -> tuple[list[Callable[[pa.RecordBatch], pa.Array]], list[int | None]]:
    """What SQLite must hold: how each of its columns is made, and which one each check judges; the first is `sample_id`."""
    makers: list[Callable[[pa.RecordBatch], pa.Array]] = [partial(_as_it_is, name="sample_id")]
    known: dict[str, int] = {"sample_id": 0}
    judged: list[int | None] = []
    for check in checks:
        if check.derive:
            judged.append(len(makers))
            makers.append(check.derive)
        elif not check.column:
            judged.append(None)
        else:
            if check.column not in known:
                known[check.column] = len(makers)
                makers.append(partial(_as_it_is, name=check.column))
            judged.append(known[check.column])
    return makers, judged


def _as_it_is(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch[name]


def _load(path: Path, batches: Iterable[pa.RecordBatch], makers: Sequence[Callable[[pa.RecordBatch], pa.Array]]) -> int:
    """Write the columns to a new SQLite file; how many rows there were.

    SQLite's names are case-blind and a table's aren't, so the columns have names of our own.
    """
    rows = 0
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE samples ({', '.join(_sql_name(place) for place in range(len(makers)))})")
        insert = f"INSERT INTO samples VALUES ({', '.join('?' * len(makers))})"
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                part = batch.slice(start, _ROWS_AT_ONCE)
                connection.executemany(insert, zip(*(_storable(make(part)) for make in makers), strict=True))
            rows += batch.num_rows
    return rows


def _sql_name(place: int) -> str:
    return f"c{place}" if place else "sample_id"


def _storable(array: pa.Array) -> list[Any]:
    """Values that SQLite holds and compares as Arrow does; of lists and structs only whether they are there."""
    type_ = array.type
    if pa.types.is_nested(type_):
        return [1 if there else None for there in array.is_valid().to_pylist()]
    if pa.types.is_dictionary(type_):
        return _storable(array.dictionary_decode())
    if pa.types.is_uint64(type_):
        # SQLite's integers end at 2^63 - 1. Text is above every number there, as these are.
        return [str(value) if value is not None and value >= 2**63 else value for value in array.to_pylist()]
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_):
        return array.to_pylist()
    if pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_) or pa.types.is_large_binary(type_):
        return [None if value is None else value.hex() for value in array.to_pylist()]
    return [None if value is None else str(value) for value in array.to_pylist()]


def _validate(path: Path, checks: Sequence[Check], judged: Sequence[int | None]) -> dict[int, dict[str, Any]]:
    """Run the suite on a SQLite file; Great Expectations' result for each check by its place."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read once, by the import below
    import great_expectations as gx
    from great_expectations.expectations.registry import get_expectation_impl

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    suite = gx.ExpectationSuite("gates")
    for place, (check, column) in enumerate(zip(checks, judged, strict=True)):
        about: dict[str, Any] = {} if column is None else {"column": _sql_name(column)}
        # The place goes along: results come back in another order.
        suite.add_expectation(get_expectation_impl(check.expectation)(**about, **check.arguments, meta={"place": place}))
    source = context.data_sources.add_sqlite("gates", connection_string=f"sqlite:///{path}", create_temp_table=False)
    table = source.add_table_asset("samples", table_name="samples").add_batch_definition_whole_table("samples")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="gates", data=table, suite=context.suites.add(suite)))
    # SUMMARY stops at so many failing rows; COMPLETE would hold all of them in memory.
    summary = {"result_format": "SUMMARY", "partial_unexpected_count": MAX_EXAMPLES, "unexpected_index_column_names": ["sample_id"]}
    results: list[Any] = [result.to_json_dict() for result in definition.run(result_format=summary).results]
    source.get_execution_engine().close()
    return {result["expectation_config"]["meta"]["place"]: result for result in results}


def _result(check: Check, found: Mapping[str, Any], rows: int) -> CheckResult:
    details, ok = found["result"], bool(found["success"])
    if not details:
        raise GateError("gates", f"'{check.name}' could not be judged: {_exception(found['exception_info'])}")
    if "observed_value" in details:
        return CheckResult(check.name, check.expectation, check.column, ok, rows, 0 if ok else rows, [], details["observed_value"])
    ids = [entry["sample_id"] for entry in details.get("partial_unexpected_index_list") or []]
    examples = [*dict.fromkeys("(no sample_id)" if id_ is None else str(id_) for id_ in ids)][:MAX_EXAMPLES]
    values = None if ok or check.derive else [*dict.fromkeys(details["partial_unexpected_list"])][:5]
    return CheckResult(check.name, check.expectation, check.column, ok, rows, details["unexpected_count"] or 0, examples, values)


def _exception(info: Mapping[str, Any]) -> str:
    """The first line of the exception that Great Expectations met."""
    details = info if "exception_message" in info else next(iter(info.values()), {})
    return (str(details.get("exception_message") or "no reason given").splitlines() or [""])[0]
