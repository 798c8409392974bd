"""Small sets as the report shows them: their images class by class, and what nets trained on them are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flows.report.proof import Forest, forest_of
from flows.report.sentences import interval, percent, points
from flows.report.thumbnails import Picture, pictures
from stillroom.operators import Table

__all__ = ["GRID_PICTURES", "DistilledGrid", "JudgedSet", "distilled_grids", "distilled_stages", "judged_sets"]

Line = dict[str, Any]

GRID_PICTURES = 100
# So many images a class, or fewer, and several classes share a row of ten.
FEW_PICTURES = 5
_ARMS = {
    "candidate": "this set",
    "candidate_8_bit": "this set in 8 bits",
    "random": "random",
    "herding": "herding",
    "k_medoids": "k-medoids",
    "real": "all real samples",
}
_METRICS = {
    "IOR": "improvement over random, points",
    "HLR": "lost against all real samples under hard labels, points",
    "LRS": "label robust score, 0 to 1; 0.269 where nothing is won or lost",
    "ARS": "augmentation robust score, 0 to 1; 0.269 where nothing is won or lost",
}


@dataclass(frozen=True)
class JudgedSet:
    """A set of a stage: its arms on the first net, gains, DD-Ranking's figures, and other nets.

    Args:
        others: for each further net its name, and the arms' accuracies in the order of `other_arms`.
        ranking: name, what it means, value and interval.
    """

    stage: str
    name: str
    said: str
    arms: Forest
    gains: Forest | None
    ranking: list[tuple[str, str, str, str]]
    other_arms: list[str]
    others: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class DistilledGrid:
    """The images of a distilled stage, class by class: a row of pictures each, or several in a row where all have few."""

    stage: str
    op: str
    rows: int
    shown: int
    said: str
    classes: list[list[Picture]]

    @property
    def few(self) -> bool:
        """Whether several classes share a row."""
        return max(map(len, self.classes)) <= FEW_PICTURES


def judged_sets(manifest: dict[str, Any]) -> list[JudgedSet]:
    """Every set that an evaluate.distilled stage judged, in the recipe's order."""
    found = []
    for stage in manifest.get("judged") or ():
        for name in dict.fromkeys(line["set"] for line in stage["lines"]):
            found.append(_judged(stage["stage"], name, [line for line in stage["lines"] if line["set"] == name]))
    return found


def distilled_stages(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages that make synthetic images out of real ones."""
    return [stage for stage in stages if stage["op"].startswith("distill.")]


def distilled_grids(stages: Sequence[dict[str, Any]], tables: Callable[[str], Table], side_px: int) -> list[DistilledGrid]:
    """The images of the distilled stages, as many of each class, at most some hundred a stage."""
    found = []
    for stage in distilled_stages(stages):
        table = tables(stage["name"])
        frame = table.frame([name for name in ("label", "parents") if name in table.schema.names]).with_row_index("row")
        classes = frame.sort("label", "row", nulls_last=True).group_by("label", maintain_order=True).agg("row")["row"].to_list()
        if not classes:
            continue
        each = max(1, GRID_PICTURES // len(classes))
        shown = [pictures(table, rows[:each], side_px) for rows in classes[:GRID_PICTURES]]
        found.append(DistilledGrid(stage["name"], stage["op"], table.rows, sum(map(len, shown)), _made(frame, stage.get("metrics") or {}), shown))
    return found


def _made(frame: Any, metrics: dict[str, Any]) -> str:
    """Out of how many real images, and what 8 bits lose of them."""
    said = []
    if "parents" in frame.columns:
        parents = frame["parents"].explode().drop_nulls().n_unique()
        said.append(f"from {parents:,} real image{'s' if parents != 1 else ''}")
    if "uint8_rms_levels" in metrics:
        clipped = f", {percent(metrics['uint8_clipped'])} of their pixels lie outside" if metrics.get("uint8_clipped") else ""
        said.append(f"shown in 8 bits, off by {metrics['uint8_rms_levels']:g} levels (root mean square){clipped}")
    return "; ".join(said)


def _judged(stage: str, name: str, lines: list[Line]) -> JudgedSet:
    net = lines[0]["net"]
    arms = [line for line in lines if line["kind"] == "arm" and line["main"]]
    own = next(line for line in arms if line["arm"] == "candidate")
    gains = [line for line in lines if line["kind"] == "difference" and line["main"] and (line["net"], line["labels"]) == (net, own["labels"])]
    first = [line for line in arms if line["net"] == net]
    others = [other for other in dict.fromkeys(line["net"] for line in arms) if other != net]
    other_arms = list(dict.fromkeys(line["arm"] for line in arms if line["net"] in others))
    return JudgedSet(
        stage=stage,
        name=name,
        said=f"{own['rows']:,} samples, {own['seeds']} nets {net}, {own['labels']} labels, protocol {own['protocol']}, {_augmented(own)}",
        arms=_forest([(_ARMS[line["arm"]], f"{line['labels']} labels, {line['rows']:,} samples", line, line["accuracy"]) for line in first]),
        gains=_forest([(f"over {_ARMS[line['against'].split('.')[0]]}", _against(line), line, line["gain"]) for line in gains], paired=True) if gains else None,
        ranking=[_figure(line) for line in lines if line["kind"] == "ranking" and line["net"] == net],
        other_arms=[_ARMS[arm] for arm in other_arms],
        others=[(other, _accuracies([line for line in arms if line["net"] == other], other_arms)) for other in others],
    )


def _forest(lines: list[tuple[str, str, Line, float]], *, paired: bool = False) -> Forest:
    return forest_of(
        [
            (label, detail, value, line["low"], line["high"], "chosen" if line["arm"] == "candidate" and not paired else "")
            for label, detail, line, value in lines
        ],
        paired=paired,
    )


def _augmented(line: Line) -> str:
    return "with augmentation" if line["augmented"] else "without augmentation"


def _against(line: Line) -> str:
    return f"{line['labels']} labels against {line['against'].split('.')[1]} ones"


def _accuracies(lines: list[Line], arms: list[str]) -> list[str]:
    """An accuracy for each arm, of its first kind of label; a dash where there is none."""
    by_arm: dict[str, Line] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], line)
    return [f"{percent(by_arm[arm]['accuracy'])} {interval(by_arm[arm]['low'], by_arm[arm]['high'])}" if arm in by_arm else "–" for arm in arms]


def _figure(line: Line) -> tuple[str, str, str, str]:
    shown = points if line["metric"] in ("IOR", "HLR") else "{:.3f}".format
    return line["metric"], _METRICS[line["metric"]], shown(line["value"]), f"[{shown(line['low'])}, {shown(line['high'])}]"
