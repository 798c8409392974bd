"""The log of builds: one object a run, written when it starts and again when it ends."""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from stillroom.stores import Store

__all__ = ["begin_run", "end_run", "last_run", "list_runs"]


def begin_run(store: Store, recipe: str, fingerprints: dict[str, str], command: str) -> str:
    """Note that a build starts: its stages' fingerprints, and the command that goes on with it. Returns the run's id."""
    started = datetime.now(UTC)
    run = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    _write(
        store,
        {
            "id": run,
            "recipe": recipe,
            "started": started.isoformat(timespec="seconds"),
            "state": "Running",
            "stage": None,
            "message": "",
            "command": command,
            "fingerprints": fingerprints,
        },
    )
    return run


def end_run(store: Store, run: str, state: str, *, stage: str | None = None, message: str = "") -> None:
    """Note how a build ended: Completed or Failed, and where."""
    found = store.read_json(f"runs/{run}.json")
    _write(store, {**found, "state": state, "stage": stage, "message": message, "ended": datetime.now(UTC).isoformat(timespec="seconds")})


def list_runs(store: Store) -> list[dict[str, Any]]:
    """All runs, the latest first; one that never ended says `Running`, or was killed."""
    found = [store.read_json(key) for key in reversed(store.list("runs/"))]
    return [{name: value for name, value in run.items() if name != "fingerprints"} for run in found]


def last_run(store: Store, recipe: str) -> dict[str, str]:
    """Stage fingerprints of the latest run of a recipe; empty if there was none."""
    for key in reversed(store.list("runs/")):
        run = store.read_json(key)
        if run["recipe"] == recipe:
            return dict(run["fingerprints"])
    return {}


def _write(store: Store, run: dict[str, Any]) -> None:
    store.put(f"runs/{run['id']}.json", json.dumps(run, indent=1, ensure_ascii=False).encode())
