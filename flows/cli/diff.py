"""stillroom diff: what differs between two snapshots."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Store, output, print_json

Before = Annotated[str, typer.Argument(metavar="A", help="A snapshot, NAME@N; without a number, the promoted one.")]
After = Annotated[str, typer.Argument(metavar="B", help="The snapshot to compare it with, of that name or another.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with example pictures to this file, too.")]


def diff(a: Before, b: After, html: Html = None, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Compare two snapshots: rows, columns, classes, scores, and what in their recipes differs."""
    from flows.history.diff import diff as compare
    from stillroom.snapshots import open as open_snapshot

    before, after = open_snapshot(a, store), open_snapshot(b, store)
    found = compare(before, after)
    if html is not None:
        from flows.report.diff import write_page

        write_page(html, found, before, after)
    if as_json:
        print_json(found)
        return
    from flows.cli.diff_table import print_diff

    print_diff(found)
    if html is not None:
        output().print(f"page  {html.absolute()}", soft_wrap=True)
