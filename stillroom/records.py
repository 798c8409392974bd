"""Records: what says that a stage is done, and what it left."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stillroom.stores import Store

__all__ = ["Record", "TableRef", "read_record", "record_key"]


@dataclass(frozen=True)
class TableRef:
    """One version of a table: all that travels between stages.

    `split` narrows it to the rows of one split.
    """

    name: str
    version: int
    rows: int
    fingerprint: str
    digest: str = ""
    split: str | None = None

    @classmethod
    def published(cls, manifest: Mapping[str, Any], split: str | None = None) -> "TableRef":
        """The table of a snapshot, as its manifest says."""
        return cls(**{name: manifest["table"][name] for name in ("name", "version", "rows", "fingerprint", "digest")}, split=split)


@dataclass(frozen=True)
class Record:
    """A finished stage: its table, its removed rows, its counts, and what it was made of.

    Args:
        fingerprint: the key.
        parts: the JSON of which the fingerprint is the hash.
        table, removed: versions of the stage's tables; `removed` is None where no row left.
        counts: planned or in, out, dropped, rejected, merged.
        columns: for each column of `table`, the digest of its values.
        files: size and BLAKE3 of each file of the versions of `table` and `removed`, by store key.
        origins: where the heavy values are that its rows refer to, as `<table>/<fingerprint>`.
        environment: packages and machine that made it.
        taken: how many of the rows that came in were taken over from an earlier build.
        metrics: small facts of the stage for people (unmatched relabels, accuracy of a teacher …).
    """

    fingerprint: str
    stage: str
    operator: str
    parts: dict[str, Any]
    table: TableRef
    removed: TableRef | None
    counts: dict[str, int]
    columns: dict[str, str]
    files: dict[str, list[int | str]] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    taken: int = 0

    @property
    def came_in(self) -> int | None:
        """How many rows came in: those of a source's plan, or of the input; None for models and metrics."""
        return self.counts.get("planned", self.counts.get("in"))

    def as_json(self) -> dict[str, Any]:
        """The record as it is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """The record of stored JSON."""
        known = dict(value)
        known["table"] = TableRef(**known["table"])
        known["removed"] = TableRef(**known["removed"]) if known["removed"] else None
        return cls(**known)


def record_key(fingerprint: str) -> str:
    """Where the record of a fingerprint is."""
    return f"records/{fingerprint}.json"


def read_record(store: Store, fingerprint: str) -> Record | None:
    """The record of a fingerprint, or None while no build has finished it."""
    value = store.read_json(record_key(fingerprint))
    return None if value is None else Record.from_json(value)
