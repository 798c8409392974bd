"""What a store says of its snapshots: manifests, reports, the pointers of promotion, marks of withdrawal.

All of it is JSON by conditional puts: nothing here opens a table, and `plan` and a build that has nothing to do need no more.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from stillroom.errors import InputError
from stillroom.sealed import seal_text
from stillroom.snapshots import numbered, promoted, withdrawn
from stillroom.stores import Store

__all__ = ["demote", "list_manifests", "promote", "was_promoted", "withdraw", "write_report"]


def was_promoted(store: Store, name: str, number: int) -> bool:
    """Whether a snapshot was promoted ever, also if it was demoted since."""
    return any(store.read_json(f"promoted/{name}/{k}.json")["number"] == number for k in numbered(store, f"promoted/{name}/"))


def list_manifests(store: Store, name: str) -> list[dict[str, Any]]:
    """All manifests of a name, by number."""
    return [store.read_json(f"snapshots/{name}/{number}.json") for number in numbered(store, f"snapshots/{name}/")]


def write_report(store: Store, name: str, number: int, html: str) -> None:
    """Put a snapshot's report beside its manifest."""
    store.put(f"snapshots/{name}/{number}.html", seal_text(html))


def promote(store: Store, name: str, number: int, reason: str) -> dict[str, Any]:
    """Write the next pointer, to snapshot `number`.

    Raises:
        InputError: there is no such snapshot, it is a trial, or it was withdrawn.
    """
    manifest = store.read_json(f"snapshots/{name}/{number}.json")
    if manifest is None:
        raise InputError(f"{name}@{number}", "no such snapshot", "`stillroom snapshots` lists them")
    if manifest["trial"]:
        raise InputError(f"{name}@{number}", "is a trial on a part of the data and is never promoted", "build it without --rows")
    if mark := withdrawn(store, name, number):
        raise InputError(f"{name}@{number}", f"was withdrawn at {mark['at']}: {mark['reason']}", mark["way_out"])
    return _point(store, name, reason, lambda standing: [*standing, number])


def demote(store: Store, name: str, reason: str) -> dict[str, Any]:
    """Take the latest promotion back: the last one below it that wasn't withdrawn counts again, or none.

    Raises:
        InputError: nothing of that name is promoted.
    """
    before = promoted(store, name)
    if before is None or before["number"] is None:
        raise InputError(name, "nothing of that name is promoted", "`stillroom snapshots` lists what there is")
    return _point(store, name, reason, lambda standing: [number for number in standing[:-1] if not withdrawn(store, name, number)])


def withdraw(store: Store, snapshot: str, *, by: str, reason: str, at: str, way_out: str) -> None:
    """Mark a snapshot, such as `digits@3`, as one whose table goes; number and manifest stay, and `open` says why it is refused."""
    name, _, number = snapshot.partition("@")
    mark = {"name": name, "number": int(number), "reason": reason, "by": by, "at": at, "way_out": way_out}
    store.create_json(f"withdrawn/{name}/{number}.json", mark)


def _point(store: Store, name: str, reason: str, move: Callable[[list[int]], list[int]]) -> dict[str, Any]:
    """Write the next pointer. It holds all promotions that stand, oldest first: the last one counts."""
    while True:
        before = promoted(store, name) or {"k": 0, "standing": []}
        k, standing = before["k"] + 1, move(before["standing"])
        number = standing[-1] if standing else None
        pointer = {"k": k, "name": name, "number": number, "standing": standing, "reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        if store.create_json(f"promoted/{name}/{k}.json", pointer):
            return pointer
