"""stillroom runs: the builds that a store has seen."""

from flows.cli.shared import DEFAULT_STORE, Json, Store, print_table, say

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
    from stillroom.stores import Store as OpenStore
    from storage.runs import list_runs

    found = list_runs(OpenStore(store))
    print_table(found, COLUMNS, as_json=as_json)
    if as_json:
        return
    # A run that was killed says `Running` for ever, so the command is worth printing for that one too.
    newest = {run["recipe"]: run for run in sorted(found, key=lambda run: str(run["started"]))}
    for run in newest.values():
        if run["state"] != "Completed":
            say(f"to go on with {run['recipe']}: {run['command']}")
