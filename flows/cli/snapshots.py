"""stillroom snapshots: the snapshots in a store."""

from flows.cli.shared import DEFAULT_STORE, Json, Store, print_table, say

COLUMNS = {
    "name": "snapshot",
    "created": "created",
    "rows": "rows",
    "promoted": "promoted",
    "trial": "trial",
    "digest": "digest",
}


def snapshots(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the snapshots in the store."""
    from stillroom.snapshots import list_snapshots

    found = list_snapshots(store)
    lines = found if as_json else [{**line, "name": f"{line['name']}@{line['number']}", "digest": str(line["digest"])[:12]} for line in found]
    print_table(lines, COLUMNS, as_json=as_json)
    if not found and not as_json:
        say(f"no snapshot in {store} yet; `stillroom build RECIPE` makes one")
