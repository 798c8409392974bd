"""stillroom rebuild: a snapshot made again from its manifest, in an empty store, and compared digest by digest."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Overrides, output, print_json, print_table, say

COLUMNS = {"name": "made", "op": "operator", "before": "digest then", "now": "digest now", "same": "same"}
DIFFERS = {"what": "differs", "before": "then", "now": "now"}
SHOWN = 12

From = Annotated[
    str, typer.Option("--store-from", envvar="STILLROOM_STORE", metavar="STORE", help="The store that has the snapshot: a folder, or an object store's URI.")
]
Into = Annotated[str, typer.Option("--into", metavar="STORE", help="The store to build in: empty, or not there yet.")]
Snapshot = Annotated[str, typer.Argument(metavar="NAME[@N]", help="A snapshot; without a number, the promoted one.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes to work with; the result doesn't depend on it. Default: the cores.")]


def rebuild(
    snapshot: Snapshot, into: Into, store_from: From = DEFAULT_STORE, overrides: Overrides = None, workers: Workers = None, as_json: Json = False
) -> None:
    """Make a snapshot again from its manifest and its sources, and say, digest by digest, whether it came out the same."""
    from dataclasses import asdict

    from flows.cli.progress import progress
    from flows.rebuild import differences
    from flows.rebuild import rebuild as make_again
    from stillroom.snapshots import manifest_of

    if not as_json:
        # Before the build, so that whoever sees another machine in it needn't wait for the end.
        print_table(differences(manifest_of(snapshot, store_from)), DIFFERS)
    with progress() as listener:
        found = make_again(snapshot, store_from, into, overrides or [], workers=workers, listener=listener)
    if as_json:
        print_json(asdict(found) | {"compared": [asdict(one) | {"same": one.same} for one in found.compared], "same": found.same})
    else:
        print_table(
            [
                asdict(one) | {"before": one.before[:SHOWN], "now": (one.now or "not made")[:SHOWN], "same": "yes" if one.same else "NO"}
                for one in found.compared
            ],
            COLUMNS,
        )
        for note in found.notes:
            say(note)
        wrong = sum(not one.same for one in found.compared)
        told = "every digest is the same" if found.same else f"{wrong} of {len(found.compared)} digests differ"
        output().print(f"{found.snapshot}: {told}; made again as {found.made} in {into}", soft_wrap=True)
    if not found.same:
        raise typer.Exit(1)
