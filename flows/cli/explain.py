"""stillroom explain: what became of a sample, and why."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Store, output, print_json

Snapshot = Annotated[str, typer.Argument(metavar="NAME[@N]", help="A snapshot; without a number, the promoted one.")]
Sample = Annotated[str, typer.Argument(metavar="SAMPLE", help="A sample's id, the beginning of one, its source path, or the picture itself as a file.")]


def explain(snapshot: Snapshot, sample: Sample, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Say what became of a sample on its way to a snapshot: which stages kept, changed or dropped it, and why."""
    from flows.history.explain import explain as trace
    from stillroom.snapshots import open as open_snapshot

    opened = open_snapshot(snapshot, store)
    found = trace(opened, sample)
    if as_json:
        print_json(found)
        return
    from flows.cli.explain_table import print_explanation

    print_explanation(found)
    for stage in opened.manifest["stages"]:
        forgotten = stage["counts"].get("forgotten")
        if forgotten and stage["name"] in {step.stage for step in found.steps}:
            output().print(f"{stage['name']} left out {forgotten:,} rows that were forgotten; which ones is known to nobody", soft_wrap=True)
