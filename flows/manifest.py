"""The lines of a manifest: each stage as it ran, hidden ones included."""

import json
from dataclasses import asdict
from typing import Any

from flows.plan import Plan
from schemas.secrets import redact
from stillroom.records import Record
from stillroom.stores import Store
from storage.manifests import list_manifests

__all__ = ["stage_lines"]


def stage_lines(plan: Plan, records: dict[str, Record]) -> list[dict[str, Any]]:
    """One entry a stage: operator, edges, parameters as written, counts, tables, digest, seconds.

    `state` is `Reused` where an earlier snapshot of the name has the stage, whatever build ran it: what a
    build that was stopped had finished is `Built` in the snapshot that comes of it.
    """
    before = {line["fingerprint"] for manifest in list_manifests(Store(plan.store), plan.graph.recipe.name) for line in manifest["stages"]}
    found = []
    for stage in plan.stages:
        record = records.get(stage.name)
        if record is None:
            continue
        found.append(
            {
                "name": stage.name,
                "op": stage.op,
                "version": stage.resolved.operator.version,
                "shape": stage.resolved.operator.shape,
                "gives": stage.resolved.operator.gives,
                "hidden": stage.hidden,
                "state": "Reused" if record.fingerprint in before else "Built",
                "fingerprint": record.fingerprint,
                "inputs": {name: {"stage": edge.stage, "split": edge.split} for name, edge in stage.resolved.inputs.items()},
                "params": _told(stage.resolved.params.model_dump(mode="json"), plan.graph.recipe.secrets),
                "seed": stage.seed,
                "seconds": record.seconds,
                "rows": record.table.rows,
                "counts": {
                    "in": record.came_in,
                    **{key: record.counts.get(key, 0) for key in ("out", "dropped", "rejected", "merged")},
                    **({"forgotten": record.counts["forgotten"]} if record.counts.get("forgotten") else {}),
                },
                "digest": record.table.digest,
                "table": asdict(record.table),
                "removed": asdict(record.removed) if record.removed else None,
                "metrics": record.metrics,
                "environment": record.environment,
            }
        )
    return found


def _told(params: dict[str, Any], secrets: frozenset[str]) -> dict[str, Any]:
    """Parameters with what came from the environment hidden, at any depth."""
    told: dict[str, Any] = json.loads(redact(json.dumps(params, ensure_ascii=False), secrets))
    return told
