"""stillroom deploy: build a recipe on a schedule, and run a command if a night fails."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Overrides, Recipe, Store, absolute, command_line, say


def deploy(
    recipe: Recipe,
    cron: Annotated[str, typer.Option("--cron", metavar="CRON", help='When to build, such as "0 2 * * *": every night at two.')],
    timezone: Annotated[str, typer.Option("--timezone", metavar="ZONE", help="Whose clock that is, such as Europe/Berlin.")] = "UTC",
    name: Annotated[str | None, typer.Option("--name", help="Of the deployment. Default: the recipe's.")] = None,
    on_failure: Annotated[
        str | None, typer.Option("--on-failure", metavar="CMD", help="A shell command that runs when a build failed or was killed; $STILLROOM_ERROR says why.")
    ] = None,
    overrides: Overrides = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Build a recipe on a schedule for as long as this command runs."""
    from flows.deploy import Night, serve

    recipe, store = absolute(recipe), absolute(store)
    settings = [word for override in overrides or [] for word in ("--set", override)]
    again = command_line("build", recipe, "--store", store, *settings)
    serve(Night(recipe, store, overrides or [], again, on_failure), cron, timezone, name, say)
