"""What evaluate.distilled found, in short: a line a set, on the benchmark's net under the set's own labels and augmentation."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MainLine", "headline_set", "main_lines"]

Line = dict[str, Any]


@dataclass(frozen=True)
class MainLine:
    """A judged set's main line.

    Args:
        title: its name in the recipe, with the stage that judged it where several stages judged one of that name.
        source: the stage that made it.
        candidate: the line of kind `arm`: accuracy with its interval, rows, seeds, net, labels.
        rivals: the arms that it is compared with by name: random, herding, k_medoids, real, candidate_8_bit.
        gains: over each of them the line of kind `difference`: gain (a fraction) with its interval, paired by net.
    """

    title: str
    source: str
    candidate: Line
    rivals: dict[str, Line]
    gains: dict[str, Line]


def main_lines(judged: Iterable[Mapping[str, Any]] | None) -> list[MainLine]:
    """The main line of each set in a manifest's `judged`, in the recipe's order."""
    by_set: dict[tuple[str, str], tuple[str, list[Line]]] = {}
    for stage in judged or ():
        for line in stage["lines"]:
            by_set.setdefault((line["set"], stage["stage"]), (stage["sets"][line["set"]], []))[1].append(line)
    standing = Counter(name for name, _ in by_set)
    titled = {(name, stage): f"{name} ({stage})" if standing[name] > 1 else name for name, stage in by_set}
    return [_main_line(titled[key], source, lines) for key, (source, lines) in by_set.items()]


def headline_set(manifest: Mapping[str, Any], trains: str | None) -> MainLine | None:
    """The set that speaks for a snapshot: the first one made by the stage that it trains on, else the first of all."""
    lines = main_lines(manifest.get("judged"))
    return next((line for line in lines if line.source == trains), lines[0] if lines else None)


def _main_line(title: str, source: str, lines: list[Line]) -> MainLine:
    arms = [line for line in lines if line["kind"] == "arm" and line["main"] and line["net"] == lines[0]["net"]]
    candidate = next(line for line in arms if line["arm"] == "candidate")  # its own labels come first
    gains = [line for line in lines if line["kind"] == "difference" and line["main"] and _same(line, candidate)]
    by_name = {f"{line['arm']}.{line['labels']}": line for line in arms}
    return MainLine(
        title, source, candidate,
        rivals={line["arm"]: line for gain in gains if (line := by_name.get(gain["against"]))},
        gains={gain["against"].partition(".")[0]: gain for gain in gains},
    )  # fmt: skip


def _same(line: Line, other: Line) -> bool:
    return all(line[name] == other[name] for name in ("net", "labels"))
