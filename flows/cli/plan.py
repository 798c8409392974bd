"""stillroom plan: what a build would run, what it would reuse, and why."""

from typing import Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Overrides, Recipe, Rehash, Store, plain, print_json, print_table, say

COLUMNS = {"name": "stage", "op": "operator", "action": "", "rows": "rows", "touches": "rows to work on", "reason": "why"}
FIELDS = ("name", "op", "hidden", "reuse", "reason", "inputs", "rows")


def plan(
    recipe: Recipe,
    rows: Annotated[int | None, typer.Option(min=1, help="Plan a trial on about this many rows of each source.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Plan only what this stage needs.")] = None,
    overrides: Overrides = None,
    everything: Annotated[bool, typer.Option("--all", help="List the hidden stages too: control twins and the proof's students.")] = False,
    rehash: Rehash = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show what a build would run, what it would reuse, and why. Runs nothing."""
    from flows.plan import make_plan
    from flows.touches import touches

    planned = make_plan(recipe, store, overrides or [], rows=rows, until=until, rehash=rehash)
    found = touches(planned)
    if as_json:
        print_json([_line(stage) | {"touches": found.get(stage.name)} for stage in planned.stages])
        return
    shown = [stage for stage in planned.stages if everything or not stage.hidden]
    columns = {name: heading for name, heading in COLUMNS.items() if found or name != "touches"}
    print_table([_line(stage) | {"touches": str(found.get(stage.name, ""))} for stage in shown], columns, dim=[stage.reuse for stage in shown])
    hidden = [stage for stage in planned.stages if stage.hidden]
    if hidden and not everything:
        running = sum(not stage.reuse for stage in hidden)
        say(f"and {len(hidden)} hidden stages (control twins, the proof's students), {running} to run; --all lists them")
    running = sum(not stage.reuse for stage in planned.stages)
    say(f"{running} of {len(planned.stages)} stages to run" if running else "everything is there already; a build would reuse it")
    if planned.looked.trusted:
        say(f"taken on trust: {_files(planned.looked.trusted)} with size, times and inode as before, not read again; --rehash reads them")
    if planned.looked.read:
        say(f"read: {_files(planned.looked.read)}")


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _line(stage: object) -> dict[str, object]:
    fields = {name: plain(getattr(stage, name)) for name in FIELDS}
    return fields | {"action": "reuse" if fields["reuse"] else "run"}
