"""Which end of a score belongs to the hard rows: what choices and distillation by a score share."""

from typing import Literal

__all__ = ["HARD_END", "KNOWN_ENDS", "hard_end"]

# By the definitions in docs/operators/prune/by_score.md.
HARD_END: dict[str, Literal["high", "low"]] = {
    "el2n": "high",
    "grand": "high",
    "forgetting": "high",
    "entropy": "high",
    "dynamic_uncertainty": "high",
    "dual": "high",
    "prototype_distance": "high",
    "loss": "high",
    "aum": "low",
    "margin": "low",
    "confidence": "low",
}
KNOWN_ENDS = "The end of the score at which rows are hard; known for " + ", ".join(HARD_END) + "."


def hard_end(score: str, told: Literal["high", "low"] | None) -> Literal["high", "low"]:
    """The end of a score at which rows are hard: what was told, else what is known of a score of that name.

    Raises:
        ValueError: neither says.
    """
    if told is None and score not in HARD_END:
        raise ValueError(f"which end of '{score}' is hard isn't known; give hard: high or hard: low")
    return told or HARD_END[score]
