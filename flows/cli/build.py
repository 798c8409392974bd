"""stillroom build: run a recipe, show how it goes, and end with what it was worth."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Overrides, Recipe, Rehash, Store, absolute, command_line, output, print_json, print_table
from stillroom.errors import StageError

if TYPE_CHECKING:
    from flows.build import BuildResult

COLUMNS = {
    "name": "stage",
    "op": "operator",
    "state": "state",
    "seconds": "seconds",
    "rows": "rows",
    "dropped": "dropped",
    "rejected": "rejected",
}


def build(
    recipe: Recipe,
    rows: Annotated[int | None, typer.Option(min=1, help="A trial on about this many rows of each source; never promoted.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Build only what this stage needs; publish nothing.")] = None,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes to work with; the result doesn't depend on it. Default: the cores.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="A Ray cluster to work on: ray://HOST:10001, HOST:6379, auto or local. Default: $STILLROOM_RAY_ADDRESS, or this machine."
        ),
    ] = None,
    rehash: Rehash = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Build a snapshot from a recipe: run what the store lacks, check it, publish it, prove it."""
    from flows.build import build_recipe
    from flows.cli.progress import progress

    again = _command(recipe, store, overrides or [], rows=rows, until=until, workers=workers, cluster=cluster)
    try:
        with progress() as listener:
            result = build_recipe(recipe, store, overrides or [], rows=rows, until=until, workers=workers, cluster=cluster, rehash=rehash, listener=listener)
    except StageError as failure:
        stage, problem, hint = failure.args
        raise StageError(stage, problem, "; ".join(filter(None, [hint, f"go on with: {again}"]))) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: {again}") from None
    if as_json:
        print_json(result)
    else:
        _print_result(result, until)


def _print_result(result: "BuildResult", until: str | None) -> None:
    console = output()
    what = result.snapshot or (f"stage {until}" if until else "the build")
    if result.reused_all:
        console.print(f"{what}: everything was there already, {len(result.stages)} stages reused ({result.seconds:.1f} s)", soft_wrap=True)
        return
    lines = _stage_lines(result.stages)
    print_table(lines, COLUMNS | ({"worked": "worked on", "taken": "taken over"} if any(line.get("taken") for line in lines) else {}))
    if result.proof:
        from flows.cli.proof_table import print_proof

        print_proof(result.proof)
    if result.judged:
        from flows.cli.judged_table import print_judged

        print_judged(result.judged)
    if result.report:
        console.print(f"report    {result.report}", soft_wrap=True)
    if result.snapshot:
        console.print(f"snapshot  {result.snapshot}", soft_wrap=True)
    console.print(f"{what}: done in {result.seconds:.1f} s", soft_wrap=True)


def _stage_lines(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recipe's stages a line each; twins and students, which nobody wrote, in one line together."""
    from flows.cli.progress import is_hidden

    lines = [
        {**stage, "seconds": float(stage["seconds"]), **{left: stage.get(left) or None for left in ("dropped", "rejected", "worked", "taken")}}
        for stage in stages
        if not is_hidden(stage["name"])
    ]
    hidden = [stage for stage in stages if is_hidden(stage["name"])]
    if hidden:
        built = sum(stage["state"] == "Built" for stage in hidden)
        lines.append(
            {
                "name": f"{len(hidden)} hidden stages",
                "op": "twins and students",
                "state": f"{built} Built",
                "seconds": float(sum(stage["seconds"] for stage in hidden)),
            }
        )
    return lines


def _command(recipe: str, store: str, overrides: list[str], **options: int | str | None) -> str:
    """The same build again, with absolute paths, quoted for a shell."""
    words = ["build", absolute(recipe), "--store", absolute(store)]
    words += [word for override in overrides for word in ("--set", override)]
    for option, value in options.items():
        words += [f"--{option}", str(value)] if value is not None else []
    return command_line(*words)
