"""A recipe that is built on a schedule: a Prefect deployment, served by this process, and a command for nights that fail.

The process asks the server for failed and crashed runs, since nobody else knows of all of them: a build
that was killed can't say so, and one whose recipe is gone never wrote a line into the store's log.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.home import home
from flows.resolve import resolve
from flows.server import ensure_server
from stillroom.errors import InputError
from stillroom.format import require_format
from stillroom.stores import Store
from storage.runs import list_runs

__all__ = ["Night", "serve"]

# How often the server is asked, and how long the user's command may take.
PAUSE_S, PATIENCE_S = 2.0, 600.0
LOOKED_AT = 50


@dataclass(frozen=True)
class Night:
    """What a build on a schedule builds, and what happens if it fails.

    Args:
        recipe, store: absolute, since each build runs in a folder of its own; a store may be a URI.
        overrides: as after `--set`.
        again: the command that builds the same by hand, for a night that left none.
        on_failure: a command for the shell; None runs none.
    """

    recipe: str
    store: str
    overrides: Sequence[str]
    again: str
    on_failure: str | None = None


def serve(night: Night, cron: str, timezone: str, name: str | None, say: Callable[[str], None]) -> None:
    """Create the deployment and run its builds, one at a time, until the process is stopped; then the schedule is paused.

    Raises:
        InputError, RecipeErrors: a fault of the recipe, the schedule or the name, or no server answers.
    """
    graph = resolve(night.recipe, night.overrides)
    require_format(Store(night.store))
    ensure_server(say=say)
    folder = os.getcwd()
    # Prefect's loader puts the working directory first on the import path, and a `tasks.py` there before ours.
    quiet = home() / "deployments"
    quiet.mkdir(parents=True, exist_ok=True)
    with chdir(quiet):
        asyncio.run(_serve(night, _deployment(night, cron, timezone, name or graph.recipe.name), folder, say))


def _deployment(night: Night, cron: str, timezone: str, name: str) -> Any:
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import EntrypointType

    from flows.flow import build

    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        option = "--timezone" if "timezone" in str(error).lower() else "--cron"
        raise InputError(f"{option} {timezone if option == '--timezone' else cron}", "is none", 'such as --cron "0 2 * * *" --timezone Europe/Berlin') from None
    parameters = {"recipe": night.recipe, "store": night.store, "overrides": list(night.overrides)}
    try:
        return build.to_deployment(name, schedules=[schedule], parameters=parameters, paused=False, entrypoint_type=EntrypointType.MODULE_PATH)
    except ValueError:
        raise InputError(f"--name {name}", "is no name for a deployment", "letters, digits, - and _ are fine") from None


async def _serve(night: Night, deployment: Any, folder: str, say: Callable[[str], None]) -> None:
    from prefect.runner import Runner

    runner = Runner(name=deployment.name, limit=1)
    # What ended while nobody served was told, or can't be: a command for an old night would mislead.
    since = datetime.now(UTC)
    identity: Any = await runner.aadd_deployment(deployment)
    say(f"deployed stillroom-build/{deployment.name}; this process runs its builds until it is stopped")
    watching = asyncio.create_task(_watch(night, identity, since, folder, say))
    try:
        await runner.start()
    finally:
        watching.cancel()


async def _watch(night: Night, deployment: Any, since: datetime, folder: str, say: Callable[[str], None]) -> None:
    """Tell each failed night once."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    failed = FlowRunFilter.model_validate({"state": {"type": {"any_": ["FAILED", "CRASHED"]}}, "end_time": {"after_": since}})
    of_ours = DeploymentFilter.model_validate({"id": {"any_": [deployment]}})
    told: set[Any] = set()
    async with get_client() as client:
        while True:
            try:
                runs = await client.read_flow_runs(flow_run_filter=failed, deployment_filter=of_ours)
            except Exception as error:  # a server that restarts
                say(f"the Prefect server doesn't answer ({type(error).__name__}); asking again")
                runs = []
            for run in runs:
                if run.id not in told:
                    told.add(run.id)
                    await asyncio.to_thread(_tell, night, str(run.id), (run.state.message if run.state else None) or "", folder, say)
            await asyncio.sleep(PAUSE_S)


def _tell(night: Night, flow_run: str, message: str, folder: str, say: Callable[[str], None]) -> None:
    """Say in one line which stage failed, why, and how to go on, and run the user's command."""
    facts = _facts(night, flow_run, message)
    where = f"stage {facts['STILLROOM_STAGE']}: " if facts["STILLROOM_STAGE"] else ""
    say(f"the build failed: {where}{facts['STILLROOM_ERROR']}; go on with: {facts['STILLROOM_RESUME']}")
    if night.on_failure is None:
        return
    try:
        # The command is the user's own; what a recipe says reaches it as values, never as text of the shell.
        ended = subprocess.run(night.on_failure, shell=True, env={**os.environ, **facts}, cwd=folder, stdin=subprocess.DEVNULL, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"--on-failure: {error}")
        return
    if ended.returncode:
        say(f"--on-failure: the command ended with exit code {ended.returncode}")


def _facts(night: Night, flow_run: str, message: str) -> Mapping[str, str]:
    """What the user's command finds in its environment."""
    try:
        runs = list_runs(Store(night.store), LOOKED_AT)
    except Exception:  # the store may be why the night failed
        runs = []
    run = next((run for run in runs if (run.get("flow_run") or {}).get("id") == flow_run), {})
    stage, why = run.get("stage") or "", run.get("message") or message
    facts = {
        "STILLROOM_RECIPE": night.recipe,
        "STILLROOM_STORE": night.store,
        "STILLROOM_STAGE": stage,
        "STILLROOM_ERROR": _line(why.removeprefix(f"{stage}: ") if stage else why),
        "STILLROOM_RESUME": run.get("command") or night.again,
    }
    return {name: value.replace("\0", "\ufffd") for name, value in facts.items()}


def _line(message: str) -> str:
    """The first line, without what Prefect says before it."""
    text = message.removeprefix("Flow run encountered an exception: ").strip()
    return text.partition("\n")[0]
