"""What a build shows in the Prefect UI beside its stages: plan, rows, progress, samples, proof, judged small sets, report.

Called inside a flow run or a task run, which the artifact then belongs to. They are a courtesy: the
record of a build is in the store, so whatever goes wrong here costs a line in the run's log.
"""

import contextvars
import functools
import html
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast
from uuid import UUID

import numpy as np

from flows.judged import main_lines
from flows.report.sentences import arm_label, count, duration, interval, percent, points, set_conclusion, verdict

if TYPE_CHECKING:
    from stillroom.operators import Table

__all__ = [
    "ProgressBar",
    "judged_artifact",
    "plan_artifact",
    "proof_artifact",
    "report_link_artifact",
    "rows_artifact",
    "sample_groups",
    "samples_artifact",
]

P = ParamSpec("P")
Line = Mapping[str, Any]

# B = pictures of a sheet, H W C = an image

PICTURES, PER_ROW, SIDE_PX, GAP_PX = 24, 12, 48, 4
# Groups of removed rows with pictures: the reasons that took the most.
REASONS = 4
PROGRESS_PAUSE_S = 2.0


def _courtesy(write: Callable[P, None]) -> Callable[P, None]:
    """Turn any failure of `write` into a line in the log."""

    @functools.wraps(write)
    def careful(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            write(*args, **kwargs)
        except Exception as fault:  # a server that is gone, a picture that is broken: the build goes on
            _log().warning("%s wrote no artifact: %s: %s", write.__name__, type(fault).__name__, fault)

    return careful


@_courtesy
def plan_artifact(stages: Sequence[Line]) -> None:
    """Show what the build runs and reuses, and why.

    Args:
        stages: name, op, reuse (bool), reason and rows (None if unknown) of each, in the order of the plan.
    """
    from prefect.artifacts import create_table_artifact

    running = sum(not stage["reuse"] for stage in stages)
    table = [
        {
            "stage": stage["name"],
            "operator": stage["op"],
            "action": "reuse" if stage["reuse"] else "run",
            "why": stage["reason"],
            "rows": "" if stage["rows"] is None else count(stage["rows"]),
        }
        for stage in stages
    ]
    create_table_artifact(table, key="plan", description=f"Plan: {running} of {len(stages)} stages run, the others are reused.")


@_courtesy
def rows_artifact(stages: Sequence[Line], stage: str | None = None) -> None:
    """Show the rows in, out, dropped and rejected: of one stage in its task run, or of all at the end of the flow.

    Args:
        stages: name, op, state, in, out, dropped, rejected, merged and seconds of each.
        stage: the stage's name, where there is one.
    """
    from prefect.artifacts import create_table_artifact

    fields = ("in", "out", "dropped", "rejected", "merged")
    table = [
        {
            "stage": line["name"],
            "operator": line["op"],
            "state": line["state"],
            **{field: count(line.get(field) or 0) for field in fields},
            "time": duration(line["seconds"]),
        }
        for line in stages
    ]
    gone = {field: sum(line.get(field) or 0 for line in stages) for field in ("dropped", "rejected")}
    what = f"Rows of {stage}" if stage else f"Rows of {len(stages)} stages"
    description = f"{what}: {count(gone['dropped'])} dropped, {count(gone['rejected'])} rejected."
    create_table_artifact(table, key=_key("rows", stage), description=description)


@_courtesy
def samples_artifact(stage: str, groups: Sequence[Line]) -> None:
    """Show pictures of a stage's samples, a sheet a group; nothing where no group has any.

    Args:
        stage: its name.
        groups: title (kept, dropped, synthetic …), note (how many, why) and images (encoded bytes) of each.
    """
    from prefect.artifacts import create_markdown_artifact

    parts = []
    for group in groups:
        sheet = _sheet(group["images"])
        if sheet:
            note = _text(group["note"])
            parts.append(f"### {_text(group['title'])}\n\n{note}\n\n![{note}]({sheet})\n")
    if not parts:
        return
    create_markdown_artifact("\n".join(parts), key=_key("samples", stage), description=f"Samples of {stage}.")


@_courtesy
def proof_artifact(proof: Line) -> None:
    """Show a proof: test accuracy by arm, the paired differences, and what they come to."""
    from prefect.artifacts import create_markdown_artifact

    arms = [(*arm_label(arm["arm"]), count(arm["rows"]), percent(arm["accuracy"]), interval(arm["low"], arm["high"]), arm["seeds"]) for arm in proof["arms"]]
    differences = [
        (
            ", ".join(arm_label(one["arm"])),
            ", ".join(arm_label(one["against"])),
            points(one["gain"]),
            f"[{points(one['low'])}, {points(one['high'])}]",
        )
        for one in proof["differences"]
    ]
    outcome = {
        "better": "The snapshot beats its control by more than the interval.",
        "worse": "The snapshot is worse than its control.",
        "unclear": "The snapshot does not beat its control beyond the interval.",
        "unmeasured": "No control was measured, so nothing says that the choice matters.",
    }[verdict(dict(proof)).outcome]
    parts = [
        f"**{outcome}**",
        _table(("trained on", "labels", "images", "test accuracy", "95 % interval", "seeds"), arms),
        "Differences in points, paired by seed:",
        _table(("this", "against", "gain", "95 % interval"), differences),
    ]
    create_markdown_artifact("\n\n".join(parts), key="proof", description=outcome)


@_courtesy
def judged_artifact(judged: Sequence[Line]) -> None:
    """Show judged small sets: accuracy of each beside as many real samples, the paired gains, and what they come to."""
    from prefect.artifacts import create_markdown_artifact

    found = main_lines(judged)
    lines = [
        (
            one.title,
            count(one.candidate["rows"]),
            f"{percent(one.candidate['accuracy'])} {interval(one.candidate['low'], one.candidate['high'])}",
            name,
            percent(one.rivals[name]["accuracy"]),
            points(gain["gain"]),
            f"[{points(gain['low'])}, {points(gain['high'])}]",
        )
        for one in found
        for name, gain in one.gains.items()
        if name in ("random", "herding")
    ]
    outcome = "; ".join(map(set_conclusion, found))
    headings = ("small set", "images", "test accuracy, 95 % interval", "against", "its accuracy", "gain in points", "95 % interval")
    create_markdown_artifact(f"**{_text(outcome)}**\n\n{_table(headings, lines)}", key="judged", description=_text(outcome))


@_courtesy
def report_link_artifact(report: str, snapshot: str = "") -> None:
    """Show where the report is; browsers follow no link from a web page to a file, so the path stands there too."""
    from prefect.artifacts import create_markdown_artifact

    if "://" in report:
        place = f"[{_text(report)}]({report})"
    else:
        address = Path(report).absolute().as_uri()
        place = f"[{_text(report)}]({address})\n\nA browser follows no link from here to a file: open this address in a new tab.\n\n    {address}"
    described = f"Report of {snapshot}: {report}" if snapshot else f"Report: {report}"
    create_markdown_artifact(place, key="report", description=described)


class ProgressBar:
    """The progress of one long stage as an artifact; one that is over within seconds gets none.

    Make it inside the task run; `update` may then be called from any thread.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        # A thread of the pool doesn't know which task run it works for.
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._artifact: UUID | None = None
        self._sent = time.monotonic()

    @_courtesy
    def update(self, done: float, total: float) -> None:
        """Say how far the stage is; sent at most every two seconds."""
        with self._lock:
            if time.monotonic() - self._sent < PROGRESS_PAUSE_S or total <= 0:
                return
            self._sent = time.monotonic()
            self._context.run(self._send, 100 * done / total)

    @_courtesy
    def finish(self) -> None:
        """Fill the bar, if it was ever shown."""
        with self._lock:
            if self._artifact is not None:
                self._context.run(self._send, 100.0)

    def _send(self, share: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = min(100.0, max(0.0, share))
        if self._artifact is None:
            key = _key("progress", self._stage)
            made = create_progress_artifact(share, key=key, description=f"Progress of {self._stage}.")
            self._artifact = cast(UUID, made)  # a coroutine only where a loop runs, as in no thread of ours
        else:
            update_progress_artifact(self._artifact, share)


def sample_groups(table: "Table", removed: "Table | None" = None, inputs: Sequence["Table"] = ()) -> list[dict[str, Any]]:
    """Groups for `samples_artifact`: rows that stayed, apart by real and synthetic, and rows that left, by reason.

    Args:
        table: the stage's own.
        removed: its `removed` table: sample_id, source, reason, kind.
        inputs: where the images of removed rows are.
    """
    from flows.report.thumbnails import image_column

    if image_column(table.schema) is None and not any(image_column(before.schema) for before in inputs):
        return []
    groups = []
    if table.rows and "synthetic" in table.schema.names:
        synthetic = table.frame(["synthetic"])["synthetic"].fill_null(False).to_numpy()
        for title, chosen in (("real", ~synthetic), ("synthetic", synthetic)):
            groups.append(_group(title, table, np.flatnonzero(chosen)))
    else:
        groups.append(_group("kept" if removed and removed.rows else "samples", table, np.arange(table.rows)))
    if removed and removed.rows:
        groups += _leavers(removed, inputs)
    return [group for group in groups if group["images"]]


def _leavers(removed: "Table", inputs: Sequence["Table"]) -> list[dict[str, Any]]:
    from flows.report.survey import find_rows, survey_removed

    largest = sorted(survey_removed(removed, PICTURES), key=lambda group: -group.rows)[:REASONS]
    ids = [[row["sample_id"] for row in group.shown] for group in largest]
    found = [(table, find_rows(table, list(chain.from_iterable(ids)))) for table in inputs]
    groups = []
    for group, shown in zip(largest, ids, strict=True):
        images = [_images(table, np.array([places[sample] for sample in shown if sample in places], np.int64)) for table, places in found]
        groups.append({"title": group.kind, "note": f"{count(group.rows)} rows: {group.reason}", "images": [*chain.from_iterable(images)][:PICTURES]})
    return groups


def _group(title: str, table: "Table", rows: np.ndarray) -> dict[str, Any]:
    return {"title": title, "note": f"{count(len(rows))} rows", "images": _images(table, rows)}


def _images(table: "Table", rows: np.ndarray) -> list[bytes]:
    """The images of some of these rows, evenly over them; none where the table has no image column."""
    from flows.report.thumbnails import image_column

    column = image_column(table.schema)
    if column is None or not len(rows):
        return []
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(np.int64))]
    return [image for image in table.take(chosen, [column])[column].to_pylist() if image]


def _sheet(images: Sequence[bytes]) -> str | None:
    """Images side by side as one PNG data URI: the UI would set single ones below each other."""
    from flows.report.thumbnails import data_uri, shrink
    from stillroom.images import ImageFault, decode

    tiles = []
    for image in images[:PICTURES]:
        try:
            pixels_HWC = shrink(decode(image), SIDE_PX)
        except ImageFault:
            continue
        # A picture of a few pixels grows by whole factors, so that its pixels stay squares.
        factor = max(1, SIDE_PX // max(pixels_HWC.shape[:2]))
        grown_HWC = pixels_HWC.repeat(factor, 0).repeat(factor, 1)
        tiles.append(np.broadcast_to(grown_HWC, (*grown_HWC.shape[:2], 3)))
    if not tiles:
        return None
    step = SIDE_PX + GAP_PX
    rows = -(-len(tiles) // PER_ROW)
    sheet_HWC = np.full((rows * step - GAP_PX, min(PER_ROW, len(tiles)) * step - GAP_PX, 3), 255, np.uint8)
    for index, tile_HWC in enumerate(tiles):
        top, left = (index // PER_ROW) * step, (index % PER_ROW) * step
        sheet_HWC[top : top + tile_HWC.shape[0], left : left + tile_HWC.shape[1]] = tile_HWC
    return data_uri(sheet_HWC)


def _key(*parts: str | None) -> str:
    """An artifact's key: Prefect allows lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", "-".join(filter(None, parts)).lower()).strip("-")


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_text(entry) for entry in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    """Any text as text in Markdown: names and reasons may hold whatever was found in the data."""
    escaped = html.escape(re.sub(r"[\r\n\t]+", " ", str(value)), quote=False)
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", escaped)


def _log() -> Any:
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
