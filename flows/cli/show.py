"""stillroom show: what a snapshot holds, how it was made, and what its proof says, or the judgement of its small sets."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.cli.progress import is_hidden
from flows.cli.shared import DEFAULT_STORE, Json, Store, absolute, cell, local_time, output, print_json, print_table

STAGE_COLUMNS = {
    "name": "stage",
    "op": "operator",
    "rows": "rows",
    "dropped": "dropped",
    "rejected": "rejected",
    "merged": "merged",
    "forgotten": "forgotten",
    "seconds": "seconds",
}
LINEAGE_COLUMNS = {
    "name": "stage",
    "op": "operator",
    "from": "from",
    "rows": "rows",
    "left": "left",
    "hidden": "hidden",
    "fingerprint": "fingerprint",
    "table": "table",
    "seconds": "seconds",
}
# Inputs are cut where there is no room for all; below so many letters they are left out, since the drawing says the same.
SHORTEST_FROM = 16
Lineage = Annotated[bool, typer.Option("--lineage", help="Show the DAG instead: each stage with its rows, fingerprint, versions and seconds.")]
GATE_COLUMNS = {"name": "gate", "column": "column", "failed": "rows that fail", "examples": "for example"}


def show(
    snapshot: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A snapshot; without a number, the promoted one.")],
    lineage: Lineage = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show a snapshot: rows, stages, gates, proof, report; or its lineage."""
    from stillroom.snapshots import manifest_of, withdrawn
    from stillroom.stores import Store as OpenStore

    manifest = manifest_of(snapshot, store)
    if lineage:
        _print_lineage(manifest, as_json)
        return
    if as_json:
        print_json(manifest)
        return
    _print_head(manifest)
    _print_stages(manifest["stages"])
    _print_gates(manifest["gates"])
    if manifest["proof"]:
        from flows.cli.proof_table import print_proof

        print_proof(manifest["proof"])
    if manifest.get("judged"):
        from flows.cli.judged_table import print_judged

        print_judged(manifest["judged"])
    if mark := withdrawn(OpenStore(store), manifest["name"], manifest["number"]):
        output().print(f"withdrawn {local_time(mark['at'])}: {mark['reason']}", soft_wrap=True)
    else:
        output().print(f"report  {absolute(store)}/snapshots/{manifest['name']}/{manifest['number']}.html", soft_wrap=True)


def _print_head(manifest: Mapping[str, Any]) -> None:
    splits = ", ".join(f"{rows:,} {split}" for split, rows in manifest["splits"].items())
    trial = "  (a trial on a part of the data)" if manifest["trial"] else ""
    console = output()
    console.print(f"{manifest['name']}@{manifest['number']}{trial}: {splits}", soft_wrap=True)
    console.print(
        f"made {local_time(manifest['created'])} from {manifest['recipe']['path']}, seed {manifest['seed']}, in {manifest['seconds']:.0f} s", soft_wrap=True
    )
    if imported := manifest.get("imported"):
        console.print(f"imported from {cell(imported['from'])} of another store, {local_time(imported['at'])}", soft_wrap=True)
    for column, facts in manifest.get("indexes", {}).items():
        kind = f"{cell(facts['kind'])}, {facts['metric']}" if facts["kind"] else "none"
        console.print(f"index of {cell(column)}: {kind}, {facts['vectors']:,} vectors", soft_wrap=True)
    if decoded := manifest.get("decoded"):
        said = f"stored, {decoded['ratio']:.1f} times the size of the encoded ones" if decoded["stored"] else f"not stored: {decoded['why']}"
        console.print(f"decoded images {said}", soft_wrap=True)
    console.print(f"digest {manifest['digest']}\n", soft_wrap=True)


def _print_lineage(manifest: Mapping[str, Any], as_json: bool) -> None:
    from flows.history.lineage import lineage

    found = lineage(manifest)
    if as_json:
        print_json(found)
        return
    graph = max(len(line.graph) for line in found)
    lines = [
        {
            "name": f"{line.graph:<{graph}}  {line.name}",
            "op": line.op + (f" {line.version}" if line.version is not None else ""),
            "from": ", ".join(line.inputs),
            "rows": line.rows,
            "left": sum(line.counts.get(fate) or 0 for fate in ("dropped", "rejected", "merged", "forgotten")) or None,
            "hidden": len(line.hidden) or None,
            "fingerprint": line.fingerprint[:12],
            "table": f"v{line.table_version}",
            "seconds": float(line.seconds),
        }
        for line in found
    ]
    print_table(*_fitting(lines, LINEAGE_COLUMNS, output().width))
    output().print(
        "● samples  ○ models  ◇ figures  ◆ the snapshot; seconds count hidden stages: control twins, a proof's students", style="dim", soft_wrap=True
    )


def _fitting(lines: list[dict[str, Any]], columns: dict[str, str], width: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The lines and columns that a terminal has room for: a line that is folded would tear the drawing apart."""
    left = dict(columns)
    for name in ("from", "hidden", "table", "fingerprint"):
        widths = {name: max(len(left[name]), *(len(cell(line[name])) for line in lines)) for name in left}
        over = sum(widths.values()) + 3 * len(widths) - width
        if over <= 0:
            break
        if name == "from" and widths["from"] - over >= SHORTEST_FROM:
            most = widths["from"] - over
            lines = [line | {"from": line["from"] if len(line["from"]) <= most else f"{line['from'][: most - 1]}…"} for line in lines]
        else:
            del left[name]
    return lines, left


def _print_stages(stages: list[dict[str, Any]]) -> None:
    lines = [
        {
            "name": stage["name"],
            "op": stage["op"],
            "rows": stage["rows"],
            **{left: stage["counts"].get(left) or None for left in ("dropped", "rejected", "merged", "forgotten")},
            "seconds": float(stage["seconds"]),
        }
        for stage in stages
        if not is_hidden(stage["name"])
    ]
    print_table(lines, {name: heading for name, heading in STAGE_COLUMNS.items() if name != "forgotten" or any(line["forgotten"] for line in lines)})


def _print_gates(gates: list[dict[str, Any]]) -> None:
    passed = sum(gate["ok"] for gate in gates)
    output().print(f"{passed} of {len(gates)} gates passed\n", soft_wrap=True)
    failed = [gate for gate in gates if not gate["ok"]]
    if failed:
        print_table(failed, GATE_COLUMNS)
