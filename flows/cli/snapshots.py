"""stillroom snapshots: the snapshots in a store."""

from typing import Any

from flows.cli.shared import DEFAULT_STORE, Json, Store, local_time, print_table, say

COLUMNS = {
    "name": "snapshot",
    "created": "created",
    "rows": "rows",
    "promoted": "promoted",
    "trial": "trial",
    "withdrawn": "withdrawn",
    "digest": "digest",
}


def snapshots(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the snapshots in the store."""
    from stillroom.snapshots import list_snapshots

    found = list_snapshots(store)
    lines = found if as_json else [_line(snapshot) for snapshot in found]
    print_table(lines, COLUMNS, as_json=as_json)
    if not found and not as_json:
        say(f"no snapshot in {store} yet; `stillroom build RECIPE` makes one")


def _line(snapshot: dict[str, Any]) -> dict[str, Any]:
    return snapshot | {
        "name": f"{snapshot['name']}@{snapshot['number']}",
        "created": local_time(snapshot["created"]),
        "digest": snapshot["digest"][:12],
    }
