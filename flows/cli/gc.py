"""stillroom gc: snapshots that nobody needs go, and with them everything that no kept one needs."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Store, output, print_json, print_table, say

if TYPE_CHECKING:
    from storage.gc import Report

COLUMNS = {"why": "what", "files": "files", "bytes": "bytes"}
UNITS = {"h": "hours", "d": "days", "w": "weeks"}

KeepLast = Annotated[int | None, typer.Option("--keep-last", min=0, metavar="N", help="Keep the last N snapshots of each name; trials are counted apart.")]
Keep = Annotated[list[str] | None, typer.Option("--keep", metavar="NAME@N", help="Keep this snapshot whatever the policy says; may be given again.")]
NewerThan = Annotated[str | None, typer.Option("--newer-than", metavar="AGE", help="Keep the snapshots made since: 12h, 30d, 8w, or a date.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")]


def gc(
    keep_last: KeepLast = None,
    keep: Keep = None,
    newer_than: NewerThan = None,
    dry_run: DryRun = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make the store small again: left-overs of dead builds go, and snapshots that a policy doesn't keep.

    Without a policy every snapshot stays. With one, those stay that --keep-last or --newer-than keeps, the promoted
    ones, and those named. The manifest of one that goes stays, and says why its table went.
    """
    from dataclasses import asdict

    from stillroom.stores import Store as OpenStore
    from storage.gc import Policy
    from storage.gc import gc as sweep

    policy = Policy(keep_last, _since(newer_than) if newer_than else None, frozenset(keep or ()))
    report = sweep(OpenStore(store), policy, dry_run=dry_run, waiting=lambda holder: say(f"waits for another gc ({holder})"))
    if as_json:
        print_json(asdict(report) | {"bytes_removed": report.bytes_removed})
    else:
        _print(report, store)


def _since(text: str) -> datetime:
    """The time that `30d` or a date means."""
    from stillroom.errors import InputError

    if age := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return datetime.now(UTC) - timedelta(**{UNITS[age[2]]: int(age[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise InputError(f"--newer-than {text}", "is no age and no date", "write 12h, 30d, 8w, or a date such as 2026-11-01") from None


def _print(report: "Report", store: str) -> None:
    lines: dict[str, dict[str, int | str]] = {}
    for removal in report.removed:
        line = lines.setdefault(removal.why, {"why": removal.why, "files": 0, "bytes": 0})
        line["files"], line["bytes"] = int(line["files"]) + 1, int(line["bytes"]) + removal.bytes
    print_table(sorted(lines.values(), key=lambda line: -int(line["bytes"])), COLUMNS)
    if report.note:
        say(report.note)
    would = "would go" if report.dry_run else "went"
    told = f"{store}: {report.bytes_removed / 1e6:,.1f} of {report.bytes / 1e6:,.1f} MB {would}"
    if report.dropped:
        told += f", with {', '.join(report.dropped)}"
    output().print(f"{told}; {len(report.kept)} of {len(report.kept) + len(report.dropped)} snapshots stay", soft_wrap=True)
