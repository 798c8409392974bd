"""A comparison of two snapshots as the terminal shows it: the sentence, why, rows, columns, labels, classes, drift."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from flows.cli.shared import cell, local_time, output, print_table
from flows.history.changes import Change, Changes, StageChange
from flows.history.diff import ColumnDiff, Diff, SplitDiff
from flows.history.drift import Balance, Drift
from flows.history.words import ARROW, change_text, headline, range_text, stage_text, value_text
from flows.report.sentences import percent, points

__all__ = ["print_diff"]

SHOWN = 10
# A class is worth a line from a change of half a per cent of the split on.
_SMALL_SHARE = 0.005
_FATES = {"changed": "yellow", "added": "green", "removed": "red", "moved_in": "cyan", "moved_out": "cyan"}


def print_diff(diff: Diff) -> None:
    """Print what differs; what doesn't is left out."""
    console = output()
    console.print(Text.assemble((diff.before.name, "bold"), f" {ARROW} ", (diff.after.name, "bold")), soft_wrap=True)
    console.print(Text(f"made {local_time(diff.before.created)} {ARROW} {local_time(diff.after.created)}", "dim"), soft_wrap=True)
    console.print(headline(diff) + "\n", soft_wrap=True)
    _print_changes(diff.changes)
    if diff.same:
        return
    _print_rows(diff)
    _print_columns(diff)
    _print_labels(diff)
    _print_classes(diff.balance)
    _print_drift(diff.drift)


def _print_changes(changes: Changes) -> None:
    causes, after = changes.causes, [stage for stage in changes.stages if stage.status == "follows"]
    lines = [{"what": stage.stage, "op": stage.op, "text": stage_text(stage), "rows": _rows(stage)} for stage in causes]
    lines += [{"what": change.what, "op": "", "text": _bare(change), "rows": ""} for change in changes.settings]
    lines += [{"what": change.what, "op": "machine", "text": _bare(change), "rows": ""} for change in changes.machine]
    lines += [{"what": change.what, "op": "package", "text": _bare(change), "rows": ""} for change in changes.packages[:SHOWN]]
    print_table(lines, {"what": "what differs", "op": "", "text": "how", "rows": "rows"}, title="why")
    if more := len(changes.packages) - SHOWN:
        output().print(f"and {more} more packages\n" if more > 0 else "", end="", soft_wrap=True)
    if after:
        output().print(f"{', '.join(stage.stage for stage in after)} {'follow' if len(after) > 1 else 'follows'} from that\n", soft_wrap=True)
    if changes.proof:
        proof = [{"arm": arm.arm, "before": percent(arm.before), "after": percent(arm.after), "gain": points(arm.after - arm.before)} for arm in changes.proof]
        print_table(proof, {"arm": "proof", "before": "before", "after": "after", "gain": "points"})


def _print_rows(diff: Diff) -> None:
    lines = [_fates(split) for split in diff.splits]
    lines += [{**_fates(diff.total), "split": "all"}] if len(lines) > 1 else []
    columns = {
        name: name.replace("_", " ")
        for name in ("split", "before", "after", "same", *_FATES)
        if name in ("split", "before", "after") or any(line[name] for line in lines)
    }
    print_table(lines, columns, title="rows", styles=_FATES)
    for move in diff.moves:
        output().print(f"{cell(move.rows)} moved from {move.before} to {move.after}, such as {move.examples[0]}", soft_wrap=True)
    if diff.moves:
        output().print()


def _fates(split: SplitDiff) -> dict[str, Any]:
    return {name: getattr(split, name) or None for name in ("split", "before", "after", "same", *_FATES)} | {"split": split.split}


def _print_columns(diff: Diff) -> None:
    lines = [
        {"column": column.column, "rows": column.rows, "share": percent(column.rows / max(1, diff.shared)), "example": _example(column)}
        for column in diff.columns
    ]
    title = f"columns that differ in the {cell(diff.shared)} rows that both have"
    print_table(lines, {"column": "column", "rows": "rows", "share": "of them", "example": "for example"}, title=title)
    for side, names in ((diff.before, diff.only_before), (diff.after, diff.only_after)):
        if names:
            output().print(f"only {side.name} has {', '.join(names)}", soft_wrap=True)
    if diff.only_before or diff.only_after:
        output().print()


def _example(column: ColumnDiff) -> str:
    retyped = f"{column.types[0]} {ARROW} {column.types[1]}  " if column.types else ""
    if not column.examples:
        return retyped.strip()
    first = column.examples[0]
    if column.kind in ("heavy", "nested"):
        return f"{retyped}another in {first.sample_id}"
    return f"{retyped}{value_text(first.before)} {ARROW} {value_text(first.after)} in {first.sample_id}"


def _print_labels(diff: Diff) -> None:
    lines = [{"column": line.column, "before": line.before, "after": line.after, "rows": line.rows} for line in diff.labels]
    print_table(lines[:SHOWN], {"column": "label", "before": "before", "after": "after", "rows": "rows"}, title="labels that changed")
    _print_more(lines, "pairs of labels")


def _print_classes(balances: Sequence[Balance]) -> None:
    lines: list[dict[str, Any]] = []
    for balance in balances:
        totals = [sum(counts) for counts in zip(*((one.before, one.after) for one in balance.classes), strict=True)] or [0, 0]
        if not all(totals):
            continue
        for one in balance.classes:
            shares = [one.before / totals[0], one.after / totals[1]]
            if abs(shares[1] - shares[0]) >= _SMALL_SHARE:
                known = {"split": balance.split, "label": one.label, "before": one.before, "after": one.after, "change": shares[1] - shares[0]}
                lines.append(known | {"share": f"{percent(shares[0])} {ARROW} {percent(shares[1])}", "points": points(shares[1] - shares[0])})
    lines.sort(key=lambda line: -abs(line["change"]))
    columns = {"split": "split", "label": "class", "before": "before", "after": "after", "share": "share of the split", "points": "points"}
    print_table(lines[:SHOWN], columns, title="class balance")
    _print_more(lines, "classes")


def _print_drift(drifts: Sequence[Drift]) -> None:
    moved = sorted((drift for drift in drifts if drift.drifted), key=lambda drift: -(drift.ks or 0))
    lines = [
        {"column": drift.column, "split": drift.split, "before": range_text(drift.before), "after": range_text(drift.after)}
        | {"ks": f"{drift.ks:.3f}", "noise": f"{drift.noise:.3f}"}
        for drift in moved
    ]
    columns = {"column": "number", "split": "split", "before": "median (5 to 95 %) before", "after": "after", "ks": "KS distance", "noise": "by chance"}
    print_table(lines[:SHOWN], columns, title="drift")
    _print_more(lines, "drifts")
    if rest := len(drifts) - len(moved):
        output().print(
            f"{rest} other {'columns' if rest > 1 else 'column'} of a split {'drift' if rest > 1 else 'drifts'} no further than chance explains\n",
            soft_wrap=True,
        )


def _print_more(lines: Sequence[Any], what: str) -> None:
    if len(lines) > SHOWN:
        output().print(f"and {len(lines) - SHOWN} more {what}; --json has all\n", soft_wrap=True)


def _rows(stage: StageChange) -> str:
    if stage.rows_before == stage.rows_after:
        return ""
    return ARROW.join(f" {cell(rows)} " if rows is not None else " – " for rows in (stage.rows_before, stage.rows_after)).strip()


def _bare(change: Change) -> str:
    return change_text(change).removeprefix(f"{change.what} ")
