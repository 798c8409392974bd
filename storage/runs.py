"""The log of builds: one object a run, written before the build reads any record, and again when it ends.

A run names its process and its beat, so that one that was killed is told from one that is slow:
on this machine the process is there or not; elsewhere the beat has to be silent for `SILENT_S`.
What was found dead is shown as `Crashed` and not written down: a run of a machine that slept
shows as `Running` again when that wakes.
"""

import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any

from stillroom.errors import StoreError
from stillroom.format import prepare
from stillroom.stores import Store
from storage.alive import hold, holder_words, is_gone, is_here, last_beat, let_go, remove, store_clock, this_process
from storage.leases import wait_until_free

__all__ = ["begin_run", "drop_run", "end_run", "last_run", "list_runs", "live_runs", "note_run"]

# How long a run on another machine is silent before it counts as crashed; before gc takes what it may still write.
SILENT_S = 120.0
ABANDONED_S = 3600.0


def begin_run(
    store: Store, recipe: str, fingerprints: dict[str, str], command: str, *, waiting: Callable[[str], None] = lambda holder: None
) -> str:  # fmt: skip
    """Note that a build starts, with the command that goes on with it; returns the run's id.

    The run is written first and `leases/gc` looked at second, while gc takes that lease first and
    looks at the runs second: so either gc sees this run, or this run waits until gc has ended.

    Args:
        store: where.
        recipe: its name.
        fingerprints: the fingerprint of each stage, as far as known.
        command: goes on with the build.
        waiting: told who is waited for while gc runs.
    """
    prepare(store)
    started = datetime.now(UTC)
    run = f"{started:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
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
            "holder": this_process(),
            "beat": hold(store),
            "fingerprints": fingerprints,
        },
    )
    wait_until_free(store, "gc", waiting=waiting)
    return run


def note_run(store: Store, run: str, **facts: Any) -> None:
    """Add to a run what the build has learnt since: its stages' fingerprints, its flow run."""
    _write(store, {**_read(store, run), **facts})


def end_run(store: Store, run: str, state: str, *, stage: str | None = None, message: str = "") -> None:
    """Note how a build ended: Completed or Failed, and where."""
    _write(store, {**_read(store, run), "state": state, "stage": stage, "message": message, "ended": datetime.now(UTC).isoformat(timespec="seconds")})
    let_go(store)


def drop_run(store: Store, run: str) -> None:
    """Take a run out of the log again: a build that found nothing to do."""
    remove(store, f"runs/{run}.json")
    let_go(store)


def list_runs(store: Store, newest: int | None = None) -> list[dict[str, Any]]:
    """All runs, or the `newest` ones, the latest first; one that was killed says `Crashed`, and how that is known."""
    clock = _Clock(store)
    found = islice(_all(store), newest)
    return [{name: value for name, value in _judged(run, clock).items() if name not in ("fingerprints", "beat")} for run in found]


def live_runs(store: Store) -> list[dict[str, Any]]:
    """The runs that may still write: their processes are there, or their beats were heard within the hour."""
    clock = _Clock(store)
    return [run for run in _all(store) if run["state"] == "Running" and not _is_dead(run, clock, ABANDONED_S)]


def last_run(store: Store, recipe: str) -> dict[str, str]:
    """Stage fingerprints of the latest run of a recipe; empty if there was none."""
    for run in _all(store):
        if run["recipe"] == recipe and run["fingerprints"]:
            return dict(run["fingerprints"])
    return {}


class _Clock:
    """What time it is for the store, asked at most once and only when a beat has to be judged."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def now(self) -> datetime:
        return store_clock(self.store)

    def silent_s(self, beat: str) -> float:
        last = last_beat(self.store, beat) if beat else None
        return float("inf") if last is None else max(0.0, (self.now - last).total_seconds())


def _is_dead(run: dict[str, Any], clock: _Clock, silent_s: float) -> bool:
    holder = run.get("holder", {})
    return is_gone(holder) if is_here(holder) else clock.silent_s(run.get("beat", "")) > silent_s


def _judged(run: dict[str, Any], clock: _Clock) -> dict[str, Any]:
    """A run as people should see it: `Crashed` where it says Running and nobody runs it."""
    if run["state"] != "Running" or not _is_dead(run, clock, SILENT_S):
        return run
    holder = run.get("holder", {})
    message = f"{holder_words(holder)} ended without a word" if is_here(holder) else f"no sign of life from {holder_words(holder)}"
    return {**run, "state": "Crashed", "message": message}


def _all(store: Store) -> Iterator[dict[str, Any]]:
    """All runs, the latest first."""
    for key in reversed(store.list("runs/")):
        if (run := store.read_json(key)) is not None:
            yield run


def _read(store: Store, run: str) -> dict[str, Any]:
    found: dict[str, Any] | None = store.read_json(f"runs/{run}.json")
    if found is None:
        raise StoreError(f"run '{run}'", "is gone from the store", "who deleted it?")
    return found


def _write(store: Store, run: dict[str, Any]) -> None:
    store.put_json(f"runs/{run['id']}.json", run)
