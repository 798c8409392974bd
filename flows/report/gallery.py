"""The pictures of the report: what each stage kept, made, dropped and rejected, and the stored views of a few samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.report.lineage import Source, feeds
from flows.report.survey import Leavers, Survey, find_rows
from flows.report.thumbnails import Picture, image_column, pictures
from stillroom.operators import Table

__all__ = ["GROUPS", "KEPT_PICTURES", "LEFT_PICTURES", "Group", "Room", "planned", "rooms"]

KEPT_PICTURES = 20
LEFT_PICTURES = 10
GROUPS = 6
MAX_PICTURES = 1_000

Stage = dict[str, Any]


@dataclass
class Group:
    """Rows of a stage that share a fate, some of them as pictures, those without an image as lines."""

    kind: str
    title: str
    rows: int
    pictures: list[Picture] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Room:
    """A stage's groups; `more` says what there was no room for."""

    stage: Stage
    groups: list[Group]
    more: str = ""


def planned(stages: list[Stage], surveys: Mapping[str, Survey], leavers: Mapping[str, list[Leavers]]) -> list[Stage]:
    """The stages with pictures: those that read or make samples, let some go, or bring several inputs together."""
    found, total = [], 0
    for stage in stages:
        name = stage["name"]
        if name not in surveys:
            continue
        if stage.get("shape") == "source" or leavers.get(name) or (len(stage.get("inputs") or ()) > 1 and stage.get("shape") == "select"):
            total += min(KEPT_PICTURES, surveys[name].rows) + sum(min(LEFT_PICTURES, group.rows) for group in leavers.get(name, [])[:GROUPS])
            if total > MAX_PICTURES:
                break
            found.append(stage)
    return found


def rooms(
    stages: list[Stage],
    by_name: Mapping[str, Stage],
    surveys: Mapping[str, Survey],
    leavers: Mapping[str, list[Leavers]],
    tables: Callable[[str], Table],
    side_px: int,
) -> list[Room]:
    """Read the pictures of the planned stages."""
    found = []
    for stage in stages:
        its_survey, its_leavers = surveys[stage["name"]], leavers.get(stage["name"], [])
        table = tables(stage["name"])
        kept = Group(*_kept(stage, its_survey), its_survey.rows)
        if image_column(table.schema):
            kept.pictures = pictures(table, its_survey.picks, side_px)
        upstream = [tables(source.stage) for source in _samples_before(stage, by_name)] or [table]
        groups = [kept, *(_left(group, upstream, side_px) for group in its_leavers[:GROUPS])]
        hidden = its_leavers[GROUPS:]
        more = f"{len(hidden)} more reasons, {sum(group.rows for group in hidden):,} rows" if hidden else ""
        found.append(Room(stage, groups, more))
    return found


def _kept(stage: Stage, its_survey: Survey) -> tuple[str, str]:
    if its_survey.rows and its_survey.synthetic == its_survey.rows:
        return ("synthetic", "made") if stage.get("shape") == "source" else ("synthetic", "kept")
    return ("kept", "read") if stage.get("shape") == "source" else ("kept", "kept")


def _samples_before(stage: Stage, by_name: Mapping[str, Stage]) -> list[Source]:
    once = {source.stage: source for source in feeds(stage, by_name) if by_name[source.stage].get("gives") == "samples"}
    return list(once.values())


def _left(leavers: Leavers, upstream: list[Table], side_px: int) -> Group:
    """A group of removed rows: pictures from the stage's inputs, where the rows still stand whole."""
    group = Group(leavers.kind, leavers.reason, leavers.rows)
    missing = {row["sample_id"]: row for row in leavers.shown}
    for table in upstream:
        if not missing or not image_column(table.schema):
            continue
        found = find_rows(table, list(missing))
        for picture in pictures(table, list(found.values()), side_px):
            row = missing.pop(picture.sample_id)
            group.reasons[picture.sample_id] = row["reason"]
            if picture.uri:
                group.pictures.append(picture)
            else:
                group.lines.append(row)
    group.lines += missing.values()
    return group
