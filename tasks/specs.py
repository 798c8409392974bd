"""What a worker needs to know of a stage, and what it hands back: plain data that pickles."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from stillroom.records import TableRef

__all__ = ["REMOVED_SCHEMA", "Part", "StageSpec"]

# Why a row is not in its stage's table. `row` is its position in the input it came from.
REMOVED_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("kind", pa.string()), ("input", pa.string()), ("row", pa.int64())]
)


@dataclass(frozen=True)
class StageSpec:
    """One stage of one build, every decision made.

    Args:
        stage: its name in the recipe.
        operator: the operator's name; a worker loads it.
        params: its parameters as JSON, defaults filled in, paths absolute.
        seed: of its draws.
        fingerprint: of its output; `parts` is what the fingerprint was hashed from.
        scores_fingerprint, scores_parts: of the columns alone, for a score.
        table: the name of its table in the store.
        schema: the logical schema of its output.
        inputs: the tables that it reads, by input name.
        trial: whether the build is one.
    """

    store: str
    stage: str
    operator: str
    params: dict[str, Any]
    seed: int
    fingerprint: str
    parts: dict[str, Any]
    table: str
    schema: pa.Schema
    inputs: dict[str, TableRef]
    scores_fingerprint: str = ""
    scores_parts: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    retries: int = 2
    trial: bool = False

    @property
    def removed(self) -> str:
        """The name of the table of its removed rows."""
        return f"{self.table}.removed"

    @property
    def work(self) -> str:
        """Where its unfinished work is; gone once there is a record."""
        return f"work/{self.scores_fingerprint or self.fingerprint}"


@dataclass(frozen=True)
class Part:
    """What a partition or a unit left: fragments that nobody sees yet, and counts.

    `files` has size and BLAKE3 of each file that the fragments, or a unit's waiting rows, consist of, by
    store key; `tally` is what `storage.tally` counted of the rows while they were written.
    """

    fragments: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    files: dict[str, list[int | str]] = field(default_factory=dict)
    tally: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
