"""stillroom demote: take back the last promotion."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Store, say


def demote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The snapshots' name, without a number.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the pointer.")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Take back the last promotion: what was promoted before it is so again."""
    from flows.publish import demote as demote_snapshot

    demote_snapshot(store, name, reason)
    say(f"demoted the current {name}: {reason}")
