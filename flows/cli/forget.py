"""stillroom forget: rows that somebody asked to have removed, gone from every table, view, page and leftover of the store."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Store, output, print_json, print_table, say

if TYPE_CHECKING:
    from storage.forget import Forgotten

SEEN = {"kind": "kind", "what": "made with them", "todo": "what to do"}

Samples = Annotated[
    list[str] | None, typer.Argument(metavar="SAMPLE", help="Ids, beginnings of ids, source paths or picture files. None: finish what was interrupted.")
]
Again = Annotated[bool, typer.Option("--rebuild", help="Then build the recipes of the withdrawn snapshots again; needs their sources.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stands in the receipt and in the marks of withdrawn snapshots.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")]


def forget(
    samples: Samples = None, rebuild: Again = False, reason: Reason = "", dry_run: DryRun = False, store: Store = DEFAULT_STORE, as_json: Json = False
) -> None:
    """Forget samples for good: their bytes go, their snapshots are withdrawn, and no later build takes them in again."""
    from dataclasses import asdict

    from flows.forget import forget_samples, rebuild_withdrawn

    found, remarks = forget_samples(store, samples or [], reason=reason, dry_run=dry_run, waiting=lambda holder: say(f"waits for gc ({holder})"))
    if not as_json:
        _print(found, asked=bool(samples))
    for remark in remarks:
        say(remark)
    again = None
    if rebuild and found.snapshots and not dry_run:
        from flows.cli.progress import progress

        with progress() as listener:
            again = rebuild_withdrawn(store, found.snapshots, listener)
    if as_json:
        print_json(asdict(found) | {"remarks": remarks, "rebuilt": asdict(again) if again else None})
    elif again:
        for before, made in again.made.items():
            output().print(f"{before} was built again as {made}", soft_wrap=True)
    if again and again.failed:
        for before, problem in again.failed.items():
            say(f"error: {before} was forgotten from, and couldn't be built again: {problem}")
        raise typer.Exit(1)


def _print(found: "Forgotten", *, asked: bool) -> None:
    if not found.receipts:
        output().print("nothing to do: " + ("all of it was forgotten before" if asked else "nothing is pending; name a sample"), soft_wrap=True)
    print_table(found.seen, SEEN)
    would = "would be " if found.dry_run else ""
    for receipt in found.receipts:
        told = f"{_count(receipt['rows'], 'sample')} {would}forgotten: {_count(receipt['versions'], 'table version')}, {_count(receipt['files'], 'file')}"
        told += f", {_count(receipt['bytes'], 'byte')}"
        withdrawn = f"; withdrawn: {', '.join(receipt['snapshots'])}" if receipt["snapshots"] else "; no snapshot had them"
        output().print(told + withdrawn, soft_wrap=True)
    if found.receipts and not found.dry_run:
        say("the receipt names nobody and is in forgotten/receipts/; the sources themselves are yours to delete")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
