"""What became of one sample: its source, its way through the stages of a snapshot's lineage, and where it stands."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.history.life import Explanation, Made, Outcome, Place, Reader, Related, SeenView, Step, Teacher, Values
from flows.history.search import Match, find_sample, matching
from flows.report.lineage import published
from flows.report.stored_views import describe
from stillroom import registry
from stillroom.errors import StillroomError, StoreError
from stillroom.fields import heavy_kind, label_names
from stillroom.snapshots import Snapshot, list_snapshots
from stillroom.snapshots import open as open_snapshot
from stillroom.soft_labels import decode as decode_labels
from stillroom.stored import StoredTable, open_table
from stillroom.views import label_of

__all__ = ["explain"]

# V = views of a sample, K = classes

CLASSES = 3
# An id in a reason ("near duplicate of 3fa9…"): the engine's are 32 hexadecimal digits.
_ID = re.compile(r"\b[0-9a-f]{32}\b")
_VIEWS = "views"
_ROLES = {"samples": "learned from it", "tune": "tuned on it", "check_on": "checked on it", "test": "judged on it"}


def explain(snapshot: Snapshot, asked: str) -> Explanation:
    """Tell what became of a sample in the lineage of a snapshot, whether it is in the snapshot or left on the way.

    Args:
        asked: an id, the beginning of one, a source path, or a picture file.

    Raises:
        InputError: no sample is meant, or several could be.
    """
    match = find_sample(snapshot, asked)
    return _Trace(snapshot, match).explanation()


class _Trace:
    """Follows one id through the stages, each table asked for one row."""

    def __init__(self, snapshot: Snapshot, match: Match) -> None:
        self.snapshot, self.match = snapshot, match
        self.stages = {stage["name"]: stage for stage in snapshot.manifest["stages"]}
        self.on_the_way = _ancestors(snapshot.manifest, self.stages)
        self.rows: dict[str, Values] = {}  # by stage where the sample stands
        self.schemas: dict[str, pa.Schema] = {}
        self.gone: set[str] = set()  # stages whose table the store no longer has
        self.steps: list[Step] = []
        self.sources: list[str] = []
        self.readers: dict[tuple[str, str], Reader] = {}

    def explanation(self) -> Explanation:
        """Follow the sample stage by stage, in the order in which they ran."""
        for name, stage in self.stages.items():
            if stage["gives"] != "samples":
                self._read_by(stage)
            elif name in self.on_the_way or not stage["hidden"]:
                self.steps += self._steps(stage)
            elif self._inputs(stage):
                # A twin isn't on the way, but its students may have learned from the sample.
                with suppress(StoreError):
                    self._row(stage)
        row = self._one(self.snapshot.table())
        last = row or next((self.rows[step.stage] for step in reversed(self.steps) if step.stage in self.rows), {})
        left = [step for step in self.steps if step.outcome in ("dropped", "rejected", "merged") and step.stage not in self.rows]
        schema = self.snapshot.schema
        return Explanation(
            sample_id=self.match.sample_id,
            snapshot=self.snapshot.name,
            split=row["split"] if row else None,
            found_by=self.match.how,
            sources=list(dict.fromkeys([*self.sources, *([self.match.source] if self.match.source else [])])),
            values={name: _told(value, schema, name) for name, value in last.items() if _shown(name, value)},
            steps=self.steps,
            ended=None if row or not left else left[-1],
            made=self._made(),
            parents=[Related(parent, self._source_of(parent)) for parent in last.get("parents") or ()],
            teacher=self._teacher(),
            readers=list(self.readers.values()),
            stands=self._stands(),
        )

    def _steps(self, stage: Values) -> list[Step]:
        """What a stage did with the sample: nothing where it never met it, several things where it met it twice."""
        inputs, source = self._inputs(stage), stage["shape"] == "source"
        if not inputs and not source and not any(edge["stage"] in self.gone for edge in stage["inputs"].values()):
            return []
        about = {"stage": stage["name"], "op": stage["op"], "hidden": stage["hidden"]}
        try:
            row = self._row(stage)
            gone = self._removed(stage)
        except StoreError:
            self.gone.add(stage["name"])
            return [Step(**about, outcome="unknown", reason="the stage's table is no longer in the store")]
        before = self.rows[inputs[0]] if inputs else {}
        decided = self._decided_by(stage, before) if inputs and _chooses(stage) else {}
        found = []
        if row is not None:
            outcome: Outcome = "kept" if not source else "made" if row.get("synthetic") else "read"
            added, changed = self._differences(stage, row, inputs)
            found.append(
                Step(**about, outcome=outcome, reason=str(row.get("source") or "") if source else "", added=added, changed=changed, decided_by=decided)
            )
            self.sources += [str(row["source"])] if source and row.get("source") else []
        for line in gone:
            reason = line["reason"] or ""
            if source and line["source"]:
                self.sources.append(line["source"])
                reason = f"{line['source']}: {reason}"
            names = [Related(one, self._source_of(one)) for one in dict.fromkeys(_ID.findall(reason)) if one != self.match.sample_id]
            found.append(Step(**about, outcome=line["kind"], reason=reason, decided_by={} if row else decided, names=names))
        return found

    def _inputs(self, stage: Values) -> list[str]:
        """The stages from which the sample came into a stage: those where it stands in the split that the edge names."""
        found = []
        for edge in stage["inputs"].values():
            row = self.rows.get(edge["stage"])
            if row is not None and (edge["split"] is None or row.get("split") == edge["split"]):
                found.append(edge["stage"])
        return found

    def _row(self, stage: Values) -> Values | None:
        table = open_table(self.snapshot.store, stage["table"])
        row = self._one(table)
        if row is not None:
            self.rows[stage["name"]], self.schemas[stage["name"]] = row, table.schema
        return row

    def _one(self, table: StoredTable) -> Values | None:
        """The sample's light columns in a table, or None where it isn't there."""
        columns = [one.name for one in table.schema if not heavy_kind(one)]
        return next(iter(matching(table, pc.field("sample_id") == self.match.sample_id, columns, 1).to_pylist()), None)

    def _removed(self, stage: Values) -> list[Values]:
        if not stage["removed"]:
            return []
        table = open_table(self.snapshot.store, stage["removed"])
        return list(matching(table, pc.field("sample_id") == self.match.sample_id, ["sample_id", "source", "reason", "kind"]).to_pylist())

    def _differences(self, stage: Values, row: Values, inputs: list[str]) -> tuple[Values, dict[str, list[Any]]]:
        """Columns that a stage added, and those that it changed, against the inputs that the sample came from."""
        schema = self.schemas[stage["name"]]
        before = {name: value for one in reversed(inputs) for name, value in self.rows[one].items()}
        old = {name: self.schemas[one] for one in reversed(inputs) for name in self.rows[one]}
        added = {name: _told(value, schema, name) for name, value in row.items() if name not in before and _shown(name, value)}
        heavy = [name.removesuffix("_hash") for name, value in row.items() if _is_hash(schema, name) and value is not None]
        added |= {name: heavy_kind(schema.field(name)) for name in heavy if f"{name}_hash" not in before}
        changed = {
            name: [_told(before[name], old[name], name), _told(value, schema, name)]
            for name, value in row.items()
            if name in before and not _same(before[name], value) and not _is_hash(schema, name)
        }
        changed |= {name: ["", "another"] for name in heavy if f"{name}_hash" in before and before[f"{name}_hash"] != row[f"{name}_hash"]}
        if not inputs:
            added = {name: value for name, value in added.items() if name not in ("sample_id", "source")}
        return added, changed

    def _decided_by(self, stage: Values, row: Values) -> Values:
        """The light columns that a stage's operator requires, with the sample's values; nothing where the operator isn't installed."""
        try:
            operator = registry.load(stage["op"])
            first = next(iter(operator.inputs.values()))
            wanted = first.columns(operator.params.model_validate(stage["params"]))
        except (StillroomError, ValueError, StopIteration):
            return {}
        schema = next((self.schemas[one] for one in self._inputs(stage)), pa.schema([]))
        return {name: _told(row[name], schema, name) for name in wanted if name in row and not isinstance(row[name], bytes)}

    def _read_by(self, stage: Values) -> None:
        """Note that a stage which trains or measures read the sample."""
        owner, _, arm = stage["name"].partition("--")
        for name, edge in stage["inputs"].items():
            row = self.rows.get(edge["stage"])
            if row is None or (edge["split"] is not None and row.get("split") != edge["split"]):
                continue
            role = _ROLES.get(name, f"read it as {name}")
            key = (owner, role)
            reader = self.readers.setdefault(key, Reader(owner, self.stages.get(owner, stage)["op"], role))
            if arm:
                reader.arms.append(arm)

    def _made(self) -> Made | None:
        """Model, class and seed of a synthetic sample, from the stage that made it."""
        for step in self.steps:
            row = self.rows.get(step.stage, {})
            if step.outcome == "made" and row.get("model_id"):
                inputs = [edge["stage"] for edge in self.stages[step.stage]["inputs"].values()]
                models = [name for name in inputs if name in self.stages and self.stages[name]["gives"] == "model"]
                settings = {name: row[name] for name in ("seed", "steps", "guidance", "scheduler") if row.get(name) is not None}
                label = str(row.get("label_name") or _told(row.get("label"), self.schemas[step.stage], "label"))
                return Made(step.stage, models[0] if models else "", row["model_id"], label, settings)
        return None

    def _teacher(self) -> Teacher | None:
        """The stored views of the sample, from the last stage that gave it some."""
        for step in reversed(self.steps):
            schema = self.schemas.get(step.stage)
            if schema is None or _VIEWS not in schema.names or not self.rows[step.stage].get(_VIEWS):
                continue
            try:
                classes = label_of(schema.field(_VIEWS)).get("num_classes")
            except StoreError:  # a user's column of that name
                return None
            if classes is None:  # views that no teacher labelled
                return None
            stored = pa.array(self.rows[step.stage][_VIEWS], schema.field(_VIEWS).type.value_type)
            names = label_names(schema) or [f"class {index}" for index in range(classes)]
            probs_VK = decode_labels(stored.field("soft_label"), classes)
            size = tuple(self.rows[step.stage].get(side) or 0 for side in ("height", "width"))
            seen = [SeenView(describe(view, size), _likeliest(probs_K, names)) for view, probs_K in zip(stored.to_pylist(), probs_VK, strict=True)]
            return Teacher(step.stage, _likeliest(probs_VK.mean(axis=0), names), seen)
        return None

    def _source_of(self, sample_id: str) -> str:
        """The source of another sample, from the stages where rows begin."""
        for stage in self.stages.values():
            if stage["gives"] == "samples" and stage["shape"] == "source":
                with suppress(StoreError):
                    table = open_table(self.snapshot.store, stage["table"])
                    columns = [name for name in ("sample_id", "source") if name in table.schema.names]
                    for row in matching(table, pc.field("sample_id") == sample_id, columns, 1).to_pylist():
                        return str(row.get("source") or "")
        return ""

    def _stands(self) -> list[Place]:
        found = []
        for line in list_snapshots(self.snapshot.store):
            name = f"{line['name']}@{line['number']}"
            try:
                table = open_snapshot(name, self.snapshot.store).table()
                rows = matching(table, pc.field("sample_id") == self.match.sample_id, ["split"], 1).to_pylist()
            except StoreError:
                continue  # withdrawn: its manifest is there and its table isn't
            found += [Place(name, row["split"], line["promoted"]) for row in rows]
        return found


def _ancestors(manifest: Mapping[str, Any], stages: Mapping[str, Values]) -> set[str]:
    """The stages of samples from which the published splits were made."""
    found: set[str] = set()
    waiting = [source.stage for source in published(dict(manifest)).values()]
    while waiting:
        name = waiting.pop()
        if name in found or name not in stages or stages[name]["gives"] != "samples":
            continue
        found.add(name)
        waiting += [edge["stage"] for edge in stages[name]["inputs"].values()]
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; NaN equals itself."""
    return bool(one == other or (one != one and other != other))


def _chooses(stage: Values) -> bool:
    return bool(stage["counts"].get("dropped") or stage["counts"].get("rejected"))


def _shown(name: str, value: Any) -> bool:
    """Whether a light value says something to a person: not what is null, and not what heavy values are called."""
    return value is not None and not isinstance(value, bytes)


def _is_hash(schema: pa.Schema, name: str) -> bool:
    base = name.removesuffix("_hash")
    return base != name and base in schema.names and heavy_kind(schema.field(base)) is not None


def _told(value: Any, schema: pa.Schema, name: str) -> Any:
    """A value as people read it: labels by name, lists of records by their number."""
    names = label_names(schema, name) if name in schema.names else None
    if names and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} {name}"
    return value.hex() if isinstance(value, bytes) else value


def _likeliest(probs_K: np.ndarray, names: list[str]) -> list[tuple[str, float]]:
    order = np.argsort(-probs_K, kind="stable")[:CLASSES]
    return [(names[index] if index < len(names) else f"class {index}", round(float(probs_K[index]), 4)) for index in order]
