"""What the latest build of a stage left for the next one; read by the engine, and by plan, so it opens no table."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from stillroom.digests import bytes_digest, json_digest
from stillroom.integrity import changed_sizes
from stillroom.operators import Unit
from stillroom.records import Record, TableRef, read_record
from stillroom.stores import Store
from tasks.specs import Part, StageSpec

__all__ = ["Earlier", "find_earlier", "keep_units", "note_latest", "units_of"]


class Earlier(NamedTuple):
    """An earlier build of a stage: its record, and the table that it read (None for a source)."""

    record: Record
    input: TableRef | None


def find_earlier(spec: StageSpec, store: Store) -> Earlier | None:
    """What the latest build of this stage, with just this operator, parameters and other inputs, left, if it is still there."""
    found = store.read_json(f"latest/{_base(spec)}.json")
    record = read_record(store, found["fingerprint"]) if found else None
    return Earlier(record, TableRef(**found["input"]) if found["input"] else None) if record else None


def note_latest(spec: StageSpec, store: Store) -> None:
    """Let the next build know what this one left."""
    first = next(iter(spec.inputs.values()), None)
    store.put_json(f"latest/{_base(spec)}.json", {"fingerprint": spec.fingerprint, "input": asdict(first) if first else None})


def keep_units(spec: StageSpec, store: Store, units: Sequence[Unit], parts: Sequence[Part], changed: Collection[str]) -> None:
    """Note what each unit of a source left, for the next build; not of those whose rows the engine `changed`, since that hangs on other units."""
    found: dict[str, Any] = {}
    start = 0
    for unit, part in zip(units, parts, strict=True):
        if unit.key and unit.name not in changed:
            files = {key: facts for key, facts in part.files.items() if ".lance/" in key}
            found[unit.key] = {"start": start, "part": asdict(replace(part, files=files, counts=_without_taken(part.counts)))}
        start += part.tally["rows"]
    store.put_json(f"records/{spec.fingerprint}.units", {"units": found, "schema": _schema_mark(spec)})


def units_of(spec: StageSpec, store: Store, record: Record) -> dict[str, tuple[int, Part]]:
    """By key, the units of an earlier build of a source: the first row of each in its table, and what it left."""
    found = store.read_json(f"records/{record.fingerprint}.units")
    if found is None or found.get("schema") != _schema_mark(spec):
        return {}
    units = {key: (line["start"], Part(**line["part"])) for key, line in found["units"].items()}
    return {key: (start, part) for key, (start, part) in units.items() if not changed_sizes(store, part.files)}


def _schema_mark(spec: StageSpec) -> str:
    """Tells whether a unit's data files have the columns, classes and all, that the stage has now."""
    return bytes_digest(spec.schema.serialize().to_pybytes()).hex()


def _without_taken(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name != "taken"}


def _base(spec: StageSpec) -> str:
    """What the stage's output depends on, apart from the rows of its first input; of a source, apart from what its files hold.

    And which stage it is: two of one operator and parameters have rows of their own, and so has a trial.
    """
    of = {"in": spec.table, "trial": spec.trial}
    if not spec.inputs:
        params = {name: None if isinstance(value, dict) and list(value) == ["digest"] else value for name, value in spec.parts["params"].items()}
        return json_digest({"units of": {**spec.parts, "params": params}, **of})
    first = next(iter(spec.inputs))
    inputs = {name: prints for name, prints in spec.parts["inputs"].items() if name != first}
    return json_digest({"rows of": {**spec.parts, "inputs": inputs}, "by": first, **of})
