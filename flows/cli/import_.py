"""stillroom import: a Parquet export becomes a snapshot of another store."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.bar import bar
from flows.cli.shared import DEFAULT_STORE, Json, Store, absolute, command_line, print_json, say


def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder that `stillroom export NAME SOURCE --as parquet` made.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make an exported snapshot one of this store, with the same rows, order and digest."""
    from stillroom.stores import Store as OpenStore
    from storage.imports import import_snapshot

    command = command_line("import", absolute(str(source)), "--store", absolute(store))
    with bar(f"{source} to {store}") as report:
        done = import_snapshot(source, OpenStore(store), command=command, report=report)
    if as_json:
        print_json(done)
        return
    print(done.snapshot)
    rows = ", ".join(f"{count:,} {name}" for name, count in done.splits.items())
    say(f"{done.origin} is here already, as {done.snapshot}" if done.same else f"{done.origin} is here as {done.snapshot}: {rows}, digest {done.digest[:12]}")
