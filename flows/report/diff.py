"""Render a comparison of two snapshots as one self-contained HTML page, in the look of a snapshot's report."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows.history.diff import ColumnDiff, Diff
from flows.history.words import ARROW, headline, stage_text, value_text
from flows.report.diff_charts import arms_forest, drift_forest, fates_bar, shares_chart, shown_classes
from flows.report.render import page_environment
from flows.report.sentences import chosen_arms, count, interval, percent
from flows.report.survey import find_rows
from flows.report.thumbnails import Picture, image_column, pictures, side_for
from stillroom.errors import InputError
from stillroom.operators import Table
from stillroom.snapshots import Snapshot

__all__ = ["Group", "Shown", "render_diff", "write_page"]

_HERE = Path(__file__).parent
_GROUP_PICTURES = 20
_COLUMN_GROUPS = 6
_SHOWN_DRIFTS = 12
_SHOWN_LABELS = 20
_MAX_RECIPE_LINES = 400
# Its label stands beside each picture, and views aren't pictures.
_NOT_SHOWN = ("label_name", "views")


@dataclass(frozen=True)
class Shown:
    """One sample: as it is, or before and after where its picture changed; `caption` says what else did."""

    picture: Picture
    earlier: Picture | None = None
    caption: str = ""


@dataclass(frozen=True)
class Group:
    """Samples that share a fate."""

    kind: str
    rows: int
    title: str
    samples: list[Shown] = field(default_factory=list)


def write_page(path: Path, diff: Diff, before: Snapshot, after: Snapshot) -> None:
    """Render a comparison into a file.

    Raises:
        InputError: the file can't be written.
    """
    page = render_diff(diff, before, after)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"can't be written: {error.strerror}", "give --html a file in a folder that is there") from None


def render_diff(diff: Diff, before: Snapshot, after: Snapshot) -> str:
    """The page of a comparison: HTML with styles and pictures inside, which loads nothing.

    Reads the pictures of some dozen rows of both snapshots; text in them may be anything.
    """
    most = max([split.removed + split.moved_out + split.after for split in diff.splits], default=1)
    drifted = sorted((drift for drift in diff.drift if drift.drifted), key=lambda drift: -(drift.ks or 0))
    page = {
        "diff": diff,
        "headline": headline(diff),
        "rule": "the same" if diff.same else f"{percent(diff.shared / max(1, diff.before.rows), 0)} of the rows stayed",
        "bars": [(split, fates_bar(split, most)) for split in diff.splits],
        "causes": _causes(diff),
        "follows": [stage.stage for stage in diff.changes.stages if stage.status == "follows"],
        "accuracy": _accuracy(before, after),
        "columns": [(column, percent(column.rows / max(1, diff.shared)), _example(column)) for column in diff.columns],
        "groups": _groups(diff, before.table(), after.table()),
        "classes": [(balance, shares_chart(balance), len(shown_classes(balance))) for balance in diff.balance if balance.distance],
        "even": [balance.split for balance in diff.balance if balance.classes and not balance.distance],
        "labels": diff.labels[:_SHOWN_LABELS],
        "drifts": [(drift, drift_forest(drift)) for drift in drifted[:_SHOWN_DRIFTS]],
        "steady": len(diff.drift) - len(drifted),
        "more_drifts": max(0, len(drifted) - _SHOWN_DRIFTS),
        "arms": arms_forest(diff.changes.proof) if diff.changes.proof else None,
        "recipe": _recipe_lines(before.manifest, after.manifest),
        "diff_style": Markup((_HERE / "diff.css").read_text(encoding="utf-8")),
        "arrow": ARROW,
    }
    return page_environment().get_template("diff.html.j2").render(page).replace("\0", "\ufffd")


def _causes(diff: Diff) -> list[tuple[str, str, str, int | None, int | None]]:
    """What differs by itself: name, what it is, how, rows before and after."""
    changes = diff.changes
    found: list[tuple[str, str, str, int | None, int | None]] = []
    for stage in changes.stages:
        if stage.status in ("changed", "data", "added", "removed", "renamed"):
            found.append((stage.stage, stage.op, stage_text(stage), stage.rows_before, stage.rows_after))
    for kind, listed in (("recipe", changes.settings), ("machine", changes.machine), ("package", changes.packages)):
        found += [(change.what, kind, f"{value_text(change.before)} {ARROW} {value_text(change.after)}", None, None) for change in listed]
    return found


def _accuracy(before: Snapshot, after: Snapshot) -> list[tuple[str, str]] | None:
    """Test accuracy, with its interval, of the arm that each proof judges its snapshot by, or None where one has no proof."""
    arms = [chosen_arms(snapshot.manifest.get("proof")).get("candidate") for snapshot in (before, after)]
    return [(percent(arm["accuracy"]), interval(arm["low"], arm["high"])) for arm in arms if arm] if all(arms) else None


def _example(column: ColumnDiff) -> str:
    if column.kind in ("heavy", "nested") or not column.examples:
        return f"{column.types[0]} {ARROW} {column.types[1]}" if column.types else ""
    first = column.examples[0]
    return f"{value_text(first.before)} {ARROW} {value_text(first.after)}"


def _groups(diff: Diff, before: Table, after: Table) -> list[Group]:
    """Pictures of what was added, removed, moved and changed; none where there are no pictures."""
    if not image_column(before.schema) or not image_column(after.schema):
        return []
    columns = sorted(
        (column for column in diff.columns if column.rows and column.column not in _NOT_SHOWN), key=lambda column: column.column not in ("image", "label")
    )
    wanted = columns[:_COLUMN_GROUPS]
    ids_after = [*diff.added, *(one for move in diff.moves for one in move.examples), *(one.sample_id for column in wanted for one in column.examples)]
    side_px = side_for(len(ids_after) + len(diff.removed) + _GROUP_PICTURES)
    new = _pictures(after, ids_after, side_px)
    old = _pictures(before, [*diff.removed, *(one.sample_id for column in wanted if column.kind == "heavy" for one in column.examples)], side_px)
    groups = [
        Group("kept", diff.total.added, "new", _shown(diff.added, new)),
        Group("removed", diff.total.removed, "gone", _shown(diff.removed, old)),
        *(Group("moved", move.rows, f"moved from {move.before} to {move.after}", _shown(move.examples, new)) for move in diff.moves),
    ]
    for column in wanted:
        samples = []
        for example in column.examples:
            if picture := new.get(example.sample_id):
                heavy = column.kind == "heavy"
                caption = "" if heavy or column.kind == "nested" else f"{value_text(example.before)} {ARROW} {value_text(example.after)}"
                samples.append(Shown(picture, old.get(example.sample_id) if heavy else None, caption))
        groups.append(Group("changed", column.rows, f"{column.column} changed", samples))
    return [group for group in groups if group.rows]


def _pictures(table: Table, ids: Sequence[str], side_px: int) -> dict[str, Picture]:
    rows = find_rows(table, list(dict.fromkeys(ids)))
    return {picture.sample_id: picture for picture in pictures(table, list(rows.values()), side_px)}


def _shown(ids: Sequence[str], found: dict[str, Picture]) -> list[Shown]:
    """Pictures in the order of their classes, so that like stands by like."""
    listed = [found[one] for one in ids[:_GROUP_PICTURES] if one in found]
    return [Shown(picture) for picture in sorted(listed, key=lambda picture: (len(picture.label), picture.label))]


def _recipe_lines(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    """The recipes' texts as a unified difference: lines with what they are, or nothing where they are equal."""
    texts = [((manifest.get("recipe") or {}).get("text") or "").splitlines() for manifest in (before, after)]
    lines = list(difflib.unified_diff(texts[0], texts[1], lineterm="", n=3))[2:]
    kinds = {"+": "plus", "-": "minus", "@": "place"}
    told = [(kinds.get(line[:1], ""), line) for line in lines[:_MAX_RECIPE_LINES]]
    return told + ([("place", f"… {count(len(lines) - _MAX_RECIPE_LINES)} more lines")] if len(lines) > _MAX_RECIPE_LINES else [])
