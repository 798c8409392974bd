"""Render a snapshot's manifest as one self-contained HTML page, under 5 MB whatever the row count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flows.judged import MainLine, headline_set
from flows.report import charts, dag, sentences
from flows.report.gallery import GROUPS, KEPT_PICTURES, LEFT_PICTURES, planned, rooms
from flows.report.lineage import Source, before_and_after, feeds, graph, published, seconds_by_owner, visible
from flows.report.proof import arms_forest, differences_forest, set_forest
from flows.report.small_sets import GRID_PICTURES, distilled_grids, distilled_stages, judged_sets
from flows.report.stored_views import VIEW_PICTURES, shown_views, views_stage
from flows.report.survey import Survey, survey, survey_removed
from flows.report.thumbnails import image_column, side_for
from stillroom.operators import Table

__all__ = ["page_environment", "render"]

Manifest = dict[str, Any]
_HERE = Path(__file__).parent
_MAX_TEXT = 60_000
_MAX_CELL = 200
_COSTLY = 5
_LEFT = ("dropped", "rejected", "merged", "forgotten")


def render(manifest: Manifest, tables: Callable[[str], Table], removed: Callable[[str], Table]) -> str:
    """Write the report of a snapshot.

    Reads light columns once for each stage of samples, and the images of some dozen rows; which
    ones depends on sample ids alone.

    Args:
        manifest: the snapshot's, as it is published; text in it may be anything.
        tables: gives the table of a stage by its name; asked for visible stages of samples only.
        removed: gives a stage's removed rows (sample_id, source, reason, kind); asked where the manifest counts some.

    Returns:
        HTML with styles and pictures inside, which loads nothing: its own policy forbids it.
    """
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    shown = [stage for stage in visible(manifest) if stage.get("gives") == "samples"]
    surveys = {stage["name"]: survey(tables(stage["name"]), KEPT_PICTURES) for stage in shown}
    leavers = {stage["name"]: survey_removed(removed(stage["name"]), LEFT_PICTURES) for stage in shown if (stage.get("removed") or {}).get("rows")}
    with_pictures = planned(shown, surveys, leavers)
    side_px = side_for(
        sum(
            min(KEPT_PICTURES, surveys[stage["name"]].rows) + sum(min(LEFT_PICTURES, group.rows) for group in leavers.get(stage["name"], [])[:GROUPS])
            for stage in with_pictures
        )
        + VIEW_PICTURES
        + GRID_PICTURES * len(distilled_stages(shown))
    )
    left = {kind for stage in shown for kind in _LEFT if (stage.get("counts") or {}).get(kind)}
    splits = published(manifest)
    viewed = views_stage(shown, splits, tables)
    trains = splits["train"].stage if "train" in splits else None
    main = None if sentences.chosen_arms(manifest.get("proof")) else headline_set(manifest, trains)
    page = {
        "manifest": manifest,
        "proof": manifest.get("proof"),
        "headline": _headline(manifest, surveys, tables, main, trains),
        "verdict": sentences.verdict(manifest.get("proof")),
        "main": _main(main) if main else None,
        "worst": sentences.worst_classes(manifest.get("proof")),
        "cost": _cost(manifest),
        "graph": dag.draw(*graph(manifest, surveys)),
        "ledger": [_ledger_line(stage, manifest) for stage in visible(manifest)],
        "left": [kind for kind in _LEFT if kind in left],
        "unused": [kind for kind in _LEFT if kind not in left and kind != "forgotten"],
        "classes": _classes(manifest, surveys),
        "rooms": rooms(with_pictures, stages, surveys, leavers, tables, side_px),
        "without_pictures": [stage["name"] for stage in shown if stage not in with_pictures],
        "views": shown_views(viewed, tables(viewed["name"]), surveys[viewed["name"]].picks, side_px) if viewed else None,
        "grids": distilled_grids(shown, tables, side_px),
        "judged": judged_sets(manifest),
        "chosen": arms_forest(manifest["proof"], only_chosen=True) if sentences.chosen_arms(manifest.get("proof")) else None,
        "arms": arms_forest(manifest["proof"]) if (manifest.get("proof") or {}).get("arms") else None,
        "differences": differences_forest(manifest["proof"]) if manifest.get("proof") else None,
    }
    # A browser takes a page with a NUL in it for something else than text.
    return page_environment().get_template("page.html.j2").render(page).replace("\0", "\ufffd")


def _headline(manifest: Manifest, surveys: dict[str, Survey], tables: Callable[[str], Table], main: MainLine | None, trains: str | None) -> str:
    ends = before_and_after(manifest)
    if ends is None or any(end.stage not in surveys for end in ends):
        return sentences.headline(manifest, rows=manifest["rows"], noun="samples", judged=main, trains=trains)
    before, after = ends
    its_survey = surveys[after.stage]
    return sentences.headline(
        manifest,
        rows=its_survey.of_split(after.split),
        synthetic=sum(its_survey.by_label(after.split, synthetic=True).values()),
        raw_rows=surveys[before.stage].of_split(before.split),
        noun="images" if image_column(tables(after.stage).schema) else "samples",
        judged=main,
        trains=trains,
    )


def _main(main: MainLine) -> dict[str, Any]:
    """A judged set for the first screen: the word of its verdict, its accuracy beside its rivals', and its gains."""
    gains = [(name, main.gains[name]) for name in ("random", "herding") if name in main.gains]
    return {
        "outcome": sentences.outcome_of(main.gains.get("random")),
        "chosen": set_forest(main),
        "gains": [
            {
                "over": name,
                "figure": sentences.points(gain["gain"]),
                "bounds": f"[{sentences.points(gain['low'])}, {sentences.points(gain['high'])}]",
                "note": {"better": "better", "worse": "worse", "unclear": "no difference shown"}[sentences.outcome_of(gain)],
            }
            for name, gain in gains
        ],
    }


def _cost(manifest: Manifest) -> dict[str, Any]:
    """Seconds by stage, the dearest first, and the bytes that the manifest knows of."""
    seconds = sorted(seconds_by_owner(manifest).items(), key=lambda item: -item[1])
    dearest, rest = seconds[:_COSTLY], seconds[_COSTLY:]
    parts = dearest + ([(f"{len(rest)} others", sum(value for _, value in rest))] if rest else [])
    return {
        "seconds": sum(value for _, value in seconds),
        "parts": [(name, sentences.duration(value)) for name, value in parts],
        "bar": charts.parts_bar(parts, [sentences.duration(value) for _, value in parts]) if sum(value for _, value in seconds) else "",
        "bytes": manifest["table"].get("bytes") or manifest.get("bytes"),
        "reused": sum(stage.get("state") == "Reused" for stage in manifest["stages"]),
    }


def _ledger_line(stage: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    counts = stage.get("counts") or {}
    stages = {each["name"]: each for each in manifest["stages"]}
    return {
        "stage": stage,
        "from": [source.stage + (f".{source.split}" if source.split else "") for source in feeds(stage, stages)],
        "samples": stage.get("gives") == "samples",
        "counts": {kind: counts.get(kind) for kind in ("in", "out", *_LEFT)},
        "seconds": seconds_by_owner(manifest)[stage["name"]],
    }


def _classes(manifest: Manifest, surveys: dict[str, Survey]) -> dict[str, Any] | None:
    """The pair of histograms, where there are labels."""
    ends = before_and_after(manifest)
    if not ends or any(end.stage not in surveys for end in ends):
        return None
    before, after = (surveys[end.stage] for end in ends)
    labels = [*dict.fromkeys([*before.labels, *after.labels])]
    if len(labels) < 2:
        return None
    shown = charts.shown_labels(labels, before.by_label(ends[0].split))
    return {
        "before": _histogram(ends[0], before, shown),
        "after": _histogram(ends[1], after, shown),
        "shown": len(shown),
        "all": len(labels),
        "synthetic": after.synthetic + before.synthetic > 0,
    }


def _histogram(end: Source, its_survey: Survey, shown: list[str]) -> dict[str, Any]:
    real, synthetic = (its_survey.by_label(end.split, synthetic=flag) for flag in (False, True))
    rows = its_survey.of_split(end.split)
    name = end.stage + (f".{end.split}" if end.split else "")
    return {
        "name": name,
        "rows": rows,
        "synthetic": sum(synthetic.values()),
        "svg": charts.histogram(shown, real, synthetic, caption=f"rows by class in {name}"),
    }


def page_environment() -> Environment:
    """What templates are rendered with: everything escaped, what is missing an error, the shared filters and the style."""
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": lambda number: "" if number is None else sentences.count(number),
        "percent": sentences.percent,
        "duration": sentences.duration,
        "size": sentences.size,
        "cell": _cell,
        "text": lambda text: _cut(str(text), _MAX_TEXT),
        "short": _short,
    }
    # Style sheets hold no user's text, and quotes in them must stay quotes.
    environment.globals["style"] = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return environment


def _short(text: Any, most: int = _MAX_CELL) -> str:
    return _cut(str(text), most)


def _cell(value: Any) -> str:
    """A value in a table: text as it is, anything else as JSON, at most 200 characters."""
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), _MAX_CELL)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
