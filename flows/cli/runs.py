"""stillroom runs: the builds that a store has seen."""

from flows.cli.shared import DEFAULT_STORE, Json, Store, local_time, print_table, say

MESSAGE_WIDTH = 100
COLUMNS = {
    "id": "run",
    "recipe": "recipe",
    "started": "started",
    "state": "state",
    "stage": "stage",
    "message": "message",
}


def runs(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the builds in the store: state, failed stage, and the command to go on."""
    from flows.crashes import tell_crashed
    from stillroom.stores import Store as OpenStore
    from storage.runs import list_runs

    tell_crashed(OpenStore(store))
    found = list_runs(OpenStore(store))
    lines = found if as_json else [{**run, "started": local_time(run["started"]), "message": _first_line(run["message"])} for run in found]
    print_table(lines, COLUMNS, as_json=as_json)
    if as_json:
        return
    newest = {run["recipe"]: run for run in sorted(found, key=lambda run: str(run["started"]))}
    for run in newest.values():
        if run["state"] in ("Failed", "Crashed"):
            say(f"to go on with {run['recipe']}: {run['command']}")


def _first_line(message: str) -> str:
    line = message.strip().partition("\n")[0]
    return line if len(line) <= MESSAGE_WIDTH else f"{line[: MESSAGE_WIDTH - 1]}…"
