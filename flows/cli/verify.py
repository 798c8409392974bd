"""stillroom verify: every byte of the store, or of what one snapshot needs, against what was written."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.shared import DEFAULT_STORE, Json, Store, output, print_json, print_table, say

if TYPE_CHECKING:
    from storage.verify import Finding, Report

COLUMNS = {"key": "file", "kind": "is", "problem": "how", "columns": "columns", "fragment": "fragment", "snapshots": "needed by"}


def verify(
    snapshot: Annotated[str | None, typer.Argument(metavar="[NAME@N]", help="Only what this snapshot needs; all of the store if left out.")] = None,
    left_over: Annotated[bool, typer.Option("--left-over", help="List what builds that died left over, too.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Check every byte: name each file that is damaged, missing or foreign, its columns, and the snapshots that need it."""
    import time

    from stillroom.stores import Store as OpenStore
    from storage.verify import verify as verify_store

    begun = time.perf_counter()
    report = verify_store(OpenStore(store), snapshot)
    if as_json:
        print_json(asdict(report) | {"sound": report.sound})
    else:
        _print(report, snapshot or store, time.perf_counter() - begun, left_over=left_over)
    if not report.sound:
        raise typer.Exit(1)


def _print(report: "Report", what: str, seconds: float, *, left_over: bool) -> None:
    print_table([_line(finding) for finding in report.findings if finding.is_fault or left_over], COLUMNS)
    faults = sum(finding.is_fault for finding in report.findings)
    rest = len(report.findings) - faults
    rate = report.bytes / max(seconds, 1e-3) / 1e6
    seen = f"{report.files:,} files of {report.bytes / 1e6:,.1f} MB read in {seconds:.1f} s ({rate:,.0f} MB/s)"
    output().print(f"{what}: {'sound' if report.sound else f'{faults} faults'}; {seen}", soft_wrap=True)
    if rest and not left_over:
        say(f"{rest} files were left over by builds that died; --left-over lists them, `stillroom gc` clears them away")


def _line(finding: "Finding") -> dict[str, Any]:
    return asdict(finding) | {"columns": ", ".join(finding.columns), "snapshots": ", ".join(finding.snapshots)}
