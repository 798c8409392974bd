"""What the report says in words: the one sentence, the verdict, and numbers as people write them."""

from dataclasses import dataclass
from typing import Any, Literal

from flows.judged import MainLine

__all__ = [
    "Outcome", "Verdict", "arm_label", "chosen_arms", "count", "duration", "headline", "interval", "outcome_of", "percent", "points", "set_conclusion", "size",
    "verdict", "worst_classes",
]  # fmt: skip

# A no-break space: a number never stands apart from its unit.
_NB = "\u00a0"
_MINUS = "\u2212"

Outcome = Literal["better", "worse", "unclear", "unmeasured"]


@dataclass(frozen=True)
class Verdict:
    """Whether the snapshot's arm beats its control beyond the interval of their difference."""

    outcome: Outcome
    difference: dict[str, Any] | None = None


def headline(
    manifest: dict[str, Any],
    *,
    rows: int,
    synthetic: int = 0,
    raw_rows: int | None = None,
    noun: str = "images",
    judged: MainLine | None = None,
    trains: str | None = None,
) -> str:
    """The sentence that stands first in a report: what was made, and what it is worth.

    Args:
        manifest: the snapshot's.
        rows: rows of the split that trains, `synthetic` of them generated.
        raw_rows: rows that could have been trained on; a proof's own count comes first.
        noun: what a row is, in the plural.
        judged: what speaks for the snapshot where it has no proof: a set's main line.
        trains: the stage that the split that trains comes from; the judged set may be another's.
    """
    what = _training_set(rows, synthetic, raw_rows, noun)
    if chosen_arms(manifest.get("proof")):
        said = _measured(manifest["proof"], synthetic, noun)
    elif judged is None:
        said = f"To train on: {what}; this recipe has no proof, so what they are worth was not measured."
    elif judged.source == trains:
        said = f"Train on {what}: {_set_measured(judged)}."
    else:
        said = f"To train on: {what}; what was measured is the set {judged.title} of {count(judged.candidate['rows'])} {noun}: {_set_measured(judged)}."
    return ("In a trial on a part of the data: " if manifest.get("trial") else "") + said


def verdict(proof: dict[str, Any] | None) -> Verdict:
    """Judge the snapshot by the paired difference from its control; an interval that holds 0 shows nothing."""
    arms = chosen_arms(proof)
    if proof is None or "control" not in arms:
        return Verdict("unmeasured")
    pair = (arms["candidate"]["arm"], arms["control"]["arm"])
    for difference in proof.get("differences", ()):
        if (difference["arm"], difference["against"]) == pair:
            return Verdict(outcome_of(difference), difference)
    return Verdict("unmeasured")


def outcome_of(difference: dict[str, Any] | None) -> Outcome:
    """What the interval of a paired difference says; one that holds or touches 0 shows nothing."""
    if difference is None:
        return "unmeasured"
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "unclear"


def set_conclusion(judged: MainLine) -> str:
    """One sentence: whether a judged set beats as many random real samples by more than the interval."""
    difference = judged.gains.get("random")
    if difference is None:
        return f"{judged.title} was compared with no random choice, so nothing says what it is worth"
    gain = f"{points(difference['gain'])} points [{points(difference['low'])}, {points(difference['high'])}]"
    return {
        "better": f"{judged.title} beats a random choice by more than the interval: {gain}",
        "worse": f"{judged.title} is worse than a random choice: {gain}",
        "unclear": f"{judged.title} does not beat a random choice beyond the interval: {gain}",
    }[outcome_of(difference)]


def chosen_arms(proof: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The arms that the sentence compares, by role: candidate, control, raw; those that the proof lacks are left out.

    The snapshot is judged as it is meant to be used, with stored labels where it has them, and the
    control under the same labels. The better of the two by test accuracy would flatter it.
    """
    arms = {arm["arm"]: arm for arm in (proof or {}).get("arms", ())}
    for labels in ("stored", "hard"):
        if f"candidate.{labels}" in arms:
            names = {"candidate": f"candidate.{labels}", "control": f"control.{labels}", "raw": "raw.hard"}
            return {role: arms[name] for role, name in names.items() if name in arms}
    return {}


def worst_classes(proof: dict[str, Any] | None, limit: int = 3) -> list[dict[str, Any]]:
    """The classes with the lowest test accuracy under the snapshot's arm, the worst first."""
    arms = chosen_arms(proof)
    return sorted(arms["candidate"].get("per_class") or [], key=lambda one: one["accuracy"])[:limit] if arms else []


def arm_label(arm: str) -> tuple[str, str]:
    """An arm's name in words: what it trained on, and with which labels."""
    name, _, labels = arm.rpartition(".")
    if name.startswith("without_"):
        what = f"without {name.removeprefix('without_')}"
    else:
        what = {"raw": "all raw data", "candidate": "this snapshot", "control": "random choice"}.get(name, name or arm)
    return what, {"hard": "plain labels", "stored": "stored views"}.get(labels, labels)


def percent(share: float, digits: int = 1) -> str:
    """0.9721 as "97.2 %"."""
    return f"{_signless(100 * share, digits)}{_NB}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Bounds of a share as "[96.8, 97.6]", in per cent."""
    return f"[{_signless(100 * low, digits)},{_NB}{_signless(100 * high, digits)}]"


def points(gain: float, digits: int = 1) -> str:
    """A difference of shares as "+3.4", in points of a per cent."""
    return f"{100 * gain:+.{digits}f}".replace("-", _MINUS)


def count(number: int) -> str:
    """1437 as "1,437"."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "< 0.1 s", "0.4 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 0.05:
        return f"< 0.1{_NB}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{_NB}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{_NB}h {minutes}{_NB}min"
    return f"{minutes}{_NB}min {rest}{_NB}s" if minutes else f"{rest}{_NB}s"


def size(size_bytes: float) -> str:
    """Bytes in decimal units: "640 B", "12.3 kB", "4.1 MB"."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f}{_NB}B"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if size_bytes < 999.5 or unit == "TB":
            break
    return f"{size_bytes:.{1 if size_bytes < 99.95 else 0}f}{_NB}{unit}"


def _measured(proof: dict[str, Any], synthetic: int, noun: str) -> str:
    arms = chosen_arms(proof)
    candidate, raw, control = arms["candidate"], arms.get("raw"), arms.get("control")
    what = _training_set(candidate["rows"], min(synthetic, candidate["rows"]), raw["rows"] if raw else None, noun)
    sentence = f"Train on {what}: {percent(candidate['accuracy'])} {interval(candidate['low'], candidate['high'])} test accuracy"
    against = [f"{percent(raw['accuracy'])} for all {count(raw['rows'])}"] if raw else []
    against += [f"{percent(control['accuracy'])} for a random choice of equal size"] if control else []
    if against:
        sentence += ", against " + " and ".join(against)
    judged = verdict(proof)
    if judged.difference is None:
        lacking = "the difference between the two" if control else "no control"
        return f"{sentence}; {lacking} was {'not ' if control else ''}measured, so nothing says that the choice matters."
    return f"{sentence}: {_clause(judged.difference, 'the random choice')}."


def _set_measured(judged: MainLine) -> str:
    """A set's accuracy, that of real samples chosen at random and by herding, and what the paired differences say."""
    candidate = judged.candidate
    sentence = f"{percent(candidate['accuracy'])} {interval(candidate['low'], candidate['high'])} test accuracy"
    words = {"random": "a random choice of equal size", "herding": "herding"}
    rivals = [f"{percent(judged.rivals[name]['accuracy'])} for {what}" for name, what in words.items() if name in judged.rivals]
    if rivals:
        sentence += ", against " + " and ".join(rivals)
    clauses = [_clause(judged.gains[name], what) for name, what in (("random", "the random choice"), ("herding", "herding")) if name in judged.gains]
    return ": ".join(filter(None, [sentence, "; ".join(clauses)]))


def _clause(difference: dict[str, Any], other: str) -> str:
    """What a paired difference shows, with its interval."""
    gain = f"{points(difference['gain'])}{_NB}points [{points(difference['low'])},{_NB}{points(difference['high'])}]"
    return {
        "better": f"a gain of {gain.replace('+', '')} over {other}",
        "worse": f"worse than {other} ({gain})",
        "unclear": f"the difference from {other}, {gain}, is within the uncertainty, so no gain is shown",
    }[outcome_of(difference)]


def _training_set(rows: int, synthetic: int, raw_rows: int | None, noun: str) -> str:
    real = rows - synthetic
    if not real:
        return f"{count(synthetic)} synthetic {noun}"
    if raw_rows is None or real > raw_rows:
        chosen = f"{count(real)} {noun}"
    else:
        chosen = f"all {count(real)} {noun}" if real == raw_rows else f"{count(real)} of {count(raw_rows)} {noun}"
    return f"{chosen} and {count(synthetic)} synthetic ones" if synthetic else chosen


def _signless(number: float, digits: int) -> str:
    # -0.0 would read as a loss.
    return f"{number:.{digits}f}".replace("-", _MINUS) if round(number, digits) else f"{0:.{digits}f}"
