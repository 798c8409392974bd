"""The life of a sample as the terminal shows it: where it stands, stage by stage, and what its teacher saw."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.cli.shared import cell, output
from flows.history.life import Explanation, Step
from flows.history.words import ARROW, value_text
from flows.report.sentences import percent

__all__ = ["print_explanation"]

_STYLES = {"read": "green", "made": "green", "kept": "green", "dropped": "yellow", "rejected": "red", "merged": "cyan", "unknown": "dim"}
# What stands elsewhere anyway: the name beside the label, and how a synthetic sample was made.
_SAID = ("sample_id", "source", "label_name")
_SAID_OF_MADE = (*_SAID, "synthetic", "model_id", "seed", "scheduler", "steps", "guidance")
_SHOWN_VIEWS = 4


def print_explanation(found: Explanation) -> None:
    """Print what became of a sample."""
    console = output()
    source = found.sources[0] if found.sources else ""
    label = found.values.get("label_name") or found.values.get("label")
    facts = [cell(fact) for fact in (source, f"label {label}" if label is not None else "") if fact]
    console.print(Text.assemble((found.sample_id, "bold"), "  ", "  ".join(facts)), soft_wrap=True)
    for other in found.sources[1:]:
        console.print(f"also found as {cell(other)}", soft_wrap=True)
    console.print(_where(found), soft_wrap=True)
    console.print()
    _print_steps(found)
    _print_values(found)
    _print_made(found)
    _print_teacher(found)
    for reader in found.readers:
        arms = f" ({', '.join(reader.arms)})" if reader.arms else ""
        console.print(f"{reader.stage}{arms} {reader.role}", soft_wrap=True)
    places = [f"{place.snapshot} {place.split}{' (promoted)' if place.promoted else ''}" for place in found.stands]
    console.print(f"stands in {', '.join(places)}" if places else "stands in no snapshot of this store", soft_wrap=True)


def _where(found: Explanation) -> Text:
    if found.split is not None:
        return Text.assemble(("in ", "green"), (f"{found.snapshot}, {found.split}", "green bold"))
    if found.ended is None:
        return Text(f"not in {found.snapshot}: no published split takes it", "yellow")
    ended = found.ended
    return Text.assemble(
        (f"not in {found.snapshot}: ", "yellow"),
        (f"{ended.outcome} by {ended.stage}", "yellow bold"),
        (f", {cell(ended.reason)}" if ended.reason else "", "yellow"),
    )


def _print_steps(found: Explanation) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for step in found.steps:
        style = "dim" if step.hidden else ""
        table.add_row(Text(step.stage, style), Text(step.op, "dim"), Text(step.outcome, _STYLES[step.outcome]), _told(step))
    output().print(table)
    output().print()


def _told(step: Step) -> Text:
    """What a stage did, a thing a line."""
    lines = [Text(cell(step.reason))] if step.reason else []
    changed = {name: pair for name, pair in step.changed.items() if name not in _SAID}
    lines += [Text(f"{name} {value_text(before)} {ARROW} {value_text(after)}", "yellow") for name, (before, after) in changed.items()]
    said = _SAID_OF_MADE if step.outcome == "made" else _SAID
    if added := {name: value for name, value in step.added.items() if name not in said}:
        lines.append(Text.assemble(("+ ", "green"), _pairs(added)))
    if step.decided_by:
        lines.append(Text(f"by {_pairs(step.decided_by)}", "dim"))
    lines += [Text(f"{one.sample_id} is {cell(one.source)}", "dim") for one in step.names if one.source]
    return Text("\n").join(lines)


def _pairs(values: Mapping[str, Any]) -> str:
    """Values after their names; of a heavy or nested one, what it is, unless its name says it."""
    said = [(name, cell(value_text(value))) for name, value in values.items()]
    return ", ".join(text if text == name or text.endswith(f" {name}") else f"{name} {text}" for name, text in said)


def _print_values(found: Explanation) -> None:
    """The values where the sample stands, if the stages that gave it some can't tell any more."""
    told = {name: value for name, value in found.values.items() if name not in _SAID}
    if told and any(step.outcome == "unknown" for step in found.steps):
        output().print(f"values  {_pairs(told)}", soft_wrap=True)


def _print_made(found: Explanation) -> None:
    if found.made:
        made = found.made
        settings = _pairs({name: value for name, value in made.settings.items() if name != "scheduler"})
        output().print(f"made    by {made.stage} as class {made.label} with model {made.model_id} of {made.model_stage}: {settings}", soft_wrap=True)
    for parent in found.parents:
        output().print(f"parent  {parent.sample_id} {cell(parent.source)}", soft_wrap=True)


def _print_teacher(found: Explanation) -> None:
    if not found.teacher:
        return
    teacher = found.teacher
    output().print(f"teacher {_classes(teacher.classes)} over {len(teacher.views)} views of {teacher.stage}", soft_wrap=True)
    for place, view in enumerate(teacher.views[:_SHOWN_VIEWS]):
        output().print(Text(f"        view {place}: {view.said}: {_classes(view.classes)}", "dim"), soft_wrap=True)
    if len(teacher.views) > _SHOWN_VIEWS:
        output().print(Text(f"        and {len(teacher.views) - _SHOWN_VIEWS} more; --json has all", "dim"), soft_wrap=True)


def _classes(classes: list[tuple[str, float]]) -> str:
    """Classes with their probabilities; those below half a per cent don't count."""
    return ", ".join(f"{cell(name)} {percent(share, 0)}" for name, share in classes if share >= 0.005)
