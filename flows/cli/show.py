"""stillroom show: what a snapshot holds, how it was made, and what its proof says."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.cli.progress import is_hidden
from flows.cli.shared import DEFAULT_STORE, Json, Store, absolute, local_time, output, print_json, print_table

STAGE_COLUMNS = {
    "name": "stage",
    "op": "operator",
    "rows": "rows",
    "dropped": "dropped",
    "rejected": "rejected",
    "merged": "merged",
    "seconds": "seconds",
}
GATE_COLUMNS = {"name": "gate", "column": "column", "failed": "rows that fail", "examples": "for example"}


def show(
    snapshot: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A snapshot; without a number, the promoted one.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show a snapshot: rows, stages, gates, proof, report."""
    from stillroom.snapshots import manifest_of

    manifest = manifest_of(snapshot, store)
    if as_json:
        print_json(manifest)
        return
    _print_head(manifest)
    _print_stages(manifest["stages"])
    _print_gates(manifest["gates"])
    if manifest["proof"]:
        from flows.cli.proof_table import print_proof

        print_proof(manifest["proof"])
    output().print(f"report  {absolute(store)}/snapshots/{manifest['name']}/{manifest['number']}.html", soft_wrap=True)


def _print_head(manifest: Mapping[str, Any]) -> None:
    splits = ", ".join(f"{rows:,} {split}" for split, rows in manifest["splits"].items())
    trial = "  (a trial on a part of the data)" if manifest["trial"] else ""
    console = output()
    console.print(f"{manifest['name']}@{manifest['number']}{trial}: {splits}", soft_wrap=True)
    console.print(
        f"made {local_time(manifest['created'])} from {manifest['recipe']['path']}, seed {manifest['seed']}, in {manifest['seconds']:.0f} s", soft_wrap=True
    )
    console.print(f"digest {manifest['digest']}\n", soft_wrap=True)


def _print_stages(stages: list[dict[str, Any]]) -> None:
    lines = [
        {
            "name": stage["name"],
            "op": stage["op"],
            "rows": stage["rows"],
            **{left: stage["counts"].get(left) or None for left in ("dropped", "rejected", "merged")},
            "seconds": float(stage["seconds"]),
        }
        for stage in stages
        if not is_hidden(stage["name"])
    ]
    print_table(lines, STAGE_COLUMNS)


def _print_gates(gates: list[dict[str, Any]]) -> None:
    passed = sum(gate["ok"] for gate in gates)
    output().print(f"{passed} of {len(gates)} gates passed\n", soft_wrap=True)
    failed = [gate for gate in gates if not gate["ok"]]
    if failed:
        print_table(failed, GATE_COLUMNS)
