"""stillroom promote: make a snapshot the one that trainers get."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Store, say


def promote(
    snapshot: Annotated[str, typer.Argument(metavar="NAME@N", help="The snapshot.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the promotion.")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Make a snapshot the one that `stillroom.open("NAME")` gives, with a reason."""
    from flows.publish import promote as promote_snapshot

    promote_snapshot(store, snapshot, reason)
    say(f"promoted {snapshot}: {reason}")
