"""Fingerprints: what a stage's output depends on, as canonical typed JSON, hashed.

Not in it: names of stages, workers, the machine. A path counts by the digest of what it holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.digests import json_digest
from stillroom.operators import Operator, Params

__all__ = ["Prints", "fingerprint"]


@dataclass(frozen=True)
class Prints:
    """The fingerprints of a stage's output: of the table, of its set of rows, of each column's values.

    Args:
        table: key of the record.
        rows: of the last stage above that may change which rows there are.
        columns: of the last stage above that made or changed the column.
        parts: the JSON that `table` is the hash of.
        scores, scores_parts: for a score, of its columns alone, apart from the table that they are joined to.
    """

    table: str
    rows: str
    columns: dict[str, str]
    parts: dict[str, Any]
    scores: str = ""
    scores_parts: dict[str, Any] | None = None

    def of_split(self, split: str | None) -> "Prints":
        """The same narrowed to a split: other rows, the same values."""
        if split is None:
            return self
        key = {"rows": self.rows, "split": split, "by": self.columns.get("split", "")}
        return Prints(json_digest({"of": self.table, "split": split}), json_digest(key), self.columns, self.parts)


def fingerprint(
    operator: Operator, params: Params, seed: int, inputs: Mapping[str, Prints], columns: list[str], added: list[str], digests: Mapping[str, str],
    forgotten: Callable[[str], str | None] = lambda fingerprint: None,
) -> Prints:  # fmt: skip
    """The fingerprints of a stage.

    Args:
        operator, params: what it is; defaults are filled in.
        seed: counts if the operator draws.
        inputs: fingerprints of what comes in, by input name.
        columns: names of the columns that go out.
        added: those that the operator makes or changes.
        digests: content digests of the parameters that are paths, by parameter name.
        forgotten: what a source's fingerprint has to hold besides where the store forgot rows of it.

    A row or select operator depends on its whole input. Units depend on the columns that they
    require, those that they look at where they are there, and the set of rows: another new column
    upstream trains nothing again.
    """
    values = params.model_dump(mode="json")
    parts: dict[str, Any] = {
        "operator": operator.name,
        "version": operator.version,
        "params": {name: {"digest": digests[name]} if name in digests else value for name, value in values.items()},
        "inputs": {},
    }
    if operator.random:
        parts["seed"] = seed
    narrow = parts | {"inputs": {name: _narrow(operator, name, prints, params) for name, prints in inputs.items()}}
    whole = parts | {"inputs": {name: prints.table for name, prints in inputs.items()}}
    scores, scores_parts = "", None
    if operator.shape == "score":
        scores, scores_parts = json_digest({"scores": narrow}), narrow
        first = next(iter(inputs.values()))
        parts = {"join": scores, "to": first.table, "scores": narrow}
    elif operator.shape in ("row", "select"):
        parts = whole
    else:
        parts = narrow
    table = json_digest(parts)
    if operator.shape == "source" and (mark := forgotten(table)):
        parts = parts | {"forgotten": mark}
        table = json_digest(parts)
    first_input = next(iter(inputs.values()), None)
    rows = first_input.rows if operator.keeps_rows and first_input else json_digest({"rows": table})
    passes_on = operator.shape in ("row", "score") or (operator.shape == "select" and len(inputs) == 1)
    carried = first_input.columns if first_input and passes_on else {}
    made = scores or table
    found = {name: carried[name] if name in carried and name not in added else json_digest({"column": name, "of": made}) for name in columns}
    return Prints(table, rows, found, parts, scores, scores_parts)


def _narrow(operator: Operator, name: str, prints: Prints, params: Params) -> Any:
    declared = operator.inputs.get(name) or operator.inputs["*"]
    if declared.kind != "samples":
        return prints.table
    columns = dict.fromkeys([*declared.columns(params), *(column for column in declared.also if column in prints.columns)])
    return {"rows": prints.rows, "columns": {column: prints.columns.get(column, "") for column in columns}}
