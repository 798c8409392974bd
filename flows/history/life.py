"""The life of a sample as `explain` tells it: what each stage did, who read it, where it stands."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Explanation", "Made", "Outcome", "Place", "Reader", "Related", "SeenView", "Step", "Teacher", "Values"]

Outcome = Literal["read", "made", "kept", "dropped", "rejected", "merged", "unknown"]
Values = dict[str, Any]


@dataclass(frozen=True)
class Related:
    """Another sample that a reason or a row names: its source, where that is known."""

    sample_id: str
    source: str = ""


@dataclass(frozen=True)
class Step:
    """What one stage did with the sample.

    Args:
        added: light columns that the stage gave it, with values; of heavy and nested ones, what they are.
        changed: light columns whose value it changed: [before, after].
        decided_by: the light columns that the operator reads to decide, with their values.
        names: samples that the reason speaks of.
        hidden: whether the recipe doesn't name the stage.
    """

    stage: str
    op: str
    outcome: Outcome
    reason: str = ""
    added: Values = field(default_factory=dict)
    changed: dict[str, list[Any]] = field(default_factory=dict)
    decided_by: Values = field(default_factory=dict)
    names: list[Related] = field(default_factory=list)
    hidden: bool = False


@dataclass(frozen=True)
class Made:
    """How a synthetic sample was made."""

    stage: str
    model_stage: str
    model_id: str
    label: str
    settings: Values


@dataclass(frozen=True)
class SeenView:
    """A stored view in words, with the classes that its teacher holds likeliest."""

    said: str
    classes: list[tuple[str, float]]


@dataclass(frozen=True)
class Teacher:
    """What a sample's stored views say: the mean over them, and each."""

    stage: str
    classes: list[tuple[str, float]]
    views: list[SeenView]


@dataclass(frozen=True)
class Reader:
    """A stage that gives a model or figures and read the sample: how, and through which hidden stages."""

    stage: str
    op: str
    role: str
    arms: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A snapshot that has the sample, and in which split."""

    snapshot: str
    split: str
    promoted: bool = False


@dataclass(frozen=True)
class Explanation:
    """The life of a sample, as a snapshot's lineage tells it.

    Args:
        split: of the snapshot, None where the sample isn't in it.
        found_by: an id, a picture, a source, a path or a prefix.
        sources: where it came from, those of equal samples that were merged into it included.
        values: its light columns where it stands last.
        ended: the step that took it out, where one did.
        stands: every snapshot of the store that has it.
    """

    sample_id: str
    snapshot: str
    split: str | None
    found_by: str
    sources: list[str]
    values: Values
    steps: list[Step]
    ended: Step | None
    made: Made | None
    parents: list[Related]
    teacher: Teacher | None
    readers: list[Reader]
    stands: list[Place]
