"""stillroom export: a snapshot as files for other libraries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.bar import bar
from flows.cli.shared import DEFAULT_STORE, Json, Store, print_json, say


def export(
    snapshot: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A snapshot; without a number, the promoted one.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The folder to make; nothing stands there until everything does.")],
    form: Annotated[
        Literal["parquet", "webdataset", "hf"],
        typer.Option("--as", help="parquet keeps everything and can be imported; webdataset is tar shards; hf is what datasets.load_from_disk opens."),
    ] = "parquet",
    split: Annotated[list[str] | None, typer.Option("--split", metavar="SPLIT", help="Only this split; may be given again. Default: all.")] = None,
    rows_per_file: Annotated[
        int | None, typer.Option("--rows-per-file", min=1, metavar="N", help="At most so many rows a file. Default: some hundred MB.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a snapshot as Parquet, WebDataset or a datasets folder."""
    from stillroom.errors import InputError
    from stillroom.snapshots import open as open_snapshot
    from storage.export import export_snapshot

    if "://" in target:
        raise InputError(target, "an export goes to a folder", "copy that to the bucket afterwards")
    opened = open_snapshot(snapshot, store)
    try:
        with bar(f"{opened.name} to {target}") as report:
            done = export_snapshot(opened, Path(target), form, splits=split or (), rows_per_file=rows_per_file, report=report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None
    if as_json:
        print_json(done)
        return
    print(done.target)
    rows = ", ".join(f"{count:,} {name}" for name, count in done.splits.items())
    taken = f", {done.taken_over:,} of them there already" if done.taken_over else ""
    say(f"{done.snapshot} as {done.form}: {rows}; {done.files:,} files, {done.bytes:,} bytes{taken}")
    for note in done.notes:
        say(note)
