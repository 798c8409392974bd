"""What the report reads of a stage: counts by class, and a few samples, in one pass over light columns."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.fields import label_names
from stillroom.operators import Table
from stillroom.repeats import hashed

__all__ = ["NO_LABEL", "Leavers", "Survey", "find_rows", "survey", "survey_removed"]

# N = rows of a table, B = rows of a batch, P = picks held so far

NO_LABEL = "(no label)"
_BATCH_ROWS = 32_768
_MAX_REASONS = 500
_MAX_LABEL_CHARS = 80
# What differs from row to row in a reason: hexadecimal words of eight or more characters, a digit among them, and numbers
# that are no part of a word. Polars' expressions can't look ahead for the digit: it is at one of these places.
_HEXADECIMAL = r"\b(?:" + "|".join(f"[0-9a-fA-F]{{{place}}}[0-9][0-9a-fA-F]{{{7 - place},}}" for place in range(8)) + r"|[a-fA-F]{8,}[0-9][0-9a-fA-F]*)\b"
_NUMBER = r"(^|[^\w.])-?\d[\d,.]*(?:[eE]-?\d+)?\b"


@dataclass(frozen=True)
class Survey:
    """What stands in a table of samples.

    Args:
        rows: how many rows it has.
        counts: rows by (split or None, class name, synthetic).
        labels: class names in the order of their index, where the schema says so, else as met.
        picks: positions of a few rows, spread over the classes: those with the smallest hash of
            their sample id, so that one sample is shown in every stage that it reaches.
    """

    rows: int
    counts: Counter[tuple[str | None, str, bool]]
    labels: list[str]
    picks: list[int]

    def of_split(self, split: str | None) -> int:
        """Rows of one split, or of all."""
        return sum(rows for (its_split, _, _), rows in self.counts.items() if split in (None, its_split))

    def by_label(self, split: str | None, *, synthetic: bool | None = None) -> Counter[str]:
        """Rows by class name, of one split or all, real or synthetic or both."""
        chosen: Counter[str] = Counter()
        for (its_split, label, its_synthetic), rows in self.counts.items():
            if split in (None, its_split) and synthetic in (None, its_synthetic):
                chosen[label] += rows
        return chosen

    @property
    def synthetic(self) -> int:
        """Rows that a generator made."""
        return sum(rows for (_, _, synthetic), rows in self.counts.items() if synthetic)


@dataclass
class Leavers:
    """Rows that left a stage for one kind of reason, with a few of them.

    `reason` is the reason itself, or, where each row has its own ("twin of 3fa9…"), what they share.
    `shown` holds sample id, source and full reason of those with the smallest hash.
    """

    kind: str
    reason: str
    rows: int = 0
    shown: list[dict[str, str]] = field(default_factory=list)


def survey(table: Table, picks: int) -> Survey:
    """Count a table's rows and pick some, in bounded memory."""
    names = label_names(table.schema)
    columns = [name for name in ("sample_id", "label", "label_name", "synthetic", "split") if name in table.schema.names]
    counts: Counter[tuple[str | None, str, bool]] = Counter()
    best = _Smallest(picks)
    for batch in table.scan(columns, batch_size=_BATCH_ROWS) if table.rows else ():
        labels_B = _labels(batch, names)
        keys = {
            "split": batch["split"] if "split" in columns else pa.nulls(len(batch), pa.string()),
            "label": labels_B,
            "synthetic": pc.fill_null(batch["synthetic"], False) if "synthetic" in columns else pa.repeat(False, len(batch)),
        }
        grouped = pa.table(keys).group_by(list(keys)).aggregate([([], "count_all")])
        for group in grouped.to_pylist():
            counts[group["split"], group["label"], group["synthetic"]] += group["count_all"]
        best.add(batch["sample_id"], labels_B, keys["synthetic"])
    met = dict.fromkeys(label for _, label, _ in counts)
    order = [name for name in names or () if name in met]
    order += sorted((name for name in met if name not in order), key=lambda name: (name == NO_LABEL, len(name), name))
    return Survey(table.rows, counts, order, best.rows(order))


def survey_removed(removed: Table, shown: int) -> list[Leavers]:
    """Group removed rows by kind and reason, the largest group of a kind first, with `shown` rows of each."""
    groups: dict[tuple[str, str], Leavers] = {}
    reasons: dict[tuple[str, str], set[str]] = defaultdict(set)
    smallest: dict[tuple[str, str], list[tuple[int, str, str, str]]] = defaultdict(list)
    by = ("kind", "shape")
    for batch in removed.scan(["sample_id", "source", "reason", "kind"], batch_size=_BATCH_ROWS) if removed.rows else ():
        rows = _leaving(batch)
        told = rows.group_by(by, maintain_order=True).agg(pl.len(), low=pl.col("reason").min(), high=pl.col("reason").max())
        for kind, shape, count, low, high in told.iter_rows():
            key = _group(kind, shape, groups)
            groups.setdefault(key, Leavers(*key)).rows += count
            reasons[key] = set(sorted(reasons[key] | {low, high})[:2])
        best = rows.sort("hash", maintain_order=True).group_by(by, maintain_order=True).head(shown)
        for kind, shape, *row in best.select(*by, "hash", "sample_id", "source", "reason").iter_rows():
            smallest[_group(kind, shape, groups)].append(tuple(row))
        for held in smallest.values():
            held.sort()
            del held[shown:]
    for key, group in groups.items():
        group.shown = [{"sample_id": sample_id, "source": source, "reason": reason} for _, sample_id, source, reason in smallest[key]]
        if len(reasons[key]) == 1:
            (group.reason,) = reasons[key]
    order = {"dropped": 0, "rejected": 1, "merged": 2}
    return sorted(groups.values(), key=lambda group: (order.get(group.kind, 3), -group.rows, group.reason))


def _leaving(batch: pa.RecordBatch) -> pl.DataFrame:
    """Rows that left: their ids, sources, reasons and kinds as text, the shape of the reason, and the hash of the id."""
    rows = pl.from_arrow(batch)
    assert isinstance(rows, pl.DataFrame)
    source = pl.col("source").cast(pl.List(pl.String)).list.join(", ") if isinstance(rows.schema["source"], pl.List) else pl.col("source").cast(pl.String)
    rows = rows.select(
        pl.col("sample_id").cast(pl.String),
        source.fill_null("").alias("source"),
        pl.when(pl.col("reason") != "").then("reason").otherwise(pl.lit("(no reason given)")).alias("reason"),
        pl.when(pl.col("kind") != "").then("kind").otherwise(pl.lit("dropped")).alias("kind"),
    )
    shape = pl.col("reason").str.replace_all(_HEXADECIMAL, "…").str.replace_all(_NUMBER, "${1}…")
    return rows.with_columns(pl.Series("hash", hashed(rows["sample_id"])), shape=shape)


def _group(kind: str, shape: str, groups: dict[tuple[str, str], Leavers]) -> tuple[str, str]:
    """The group of a kind and shape of reason; where there are too many, the one for all the rest of that kind."""
    return (kind, shape) if (kind, shape) in groups or len(groups) < _MAX_REASONS else (kind, "other reasons")


def find_rows(table: Table, sample_ids: list[str]) -> dict[str, int]:
    """Positions of these sample ids in a table; those that it lacks are left out."""
    found: dict[str, int] = {}
    wanted = pa.array(sample_ids, pa.string())
    for first, batch in _numbered(table):
        ids = batch["sample_id"]
        for position in np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy(zero_copy_only=False)):
            found.setdefault(ids[int(position)].as_py(), first + int(position))
        if len(found) == len(sample_ids):
            break
    return found


def _numbered(table: Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in table.scan(["sample_id"], batch_size=_BATCH_ROWS) if table.rows else ():
        yield first, batch
        first += len(batch)


def _labels(batch: pa.RecordBatch, names: list[str] | None) -> pa.Array:
    """The class name of each row, never null."""
    if "label_name" in batch.schema.names:
        labels_B = batch["label_name"].cast(pa.string())
    elif "label" in batch.schema.names:
        codes = batch["label"]
        if pa.types.is_integer(codes.type):
            # Names are looked up once for each code that there is.
            encoded = codes.dictionary_encode()
            named = [names[code] if names and 0 <= code < len(names) else str(code) for code in encoded.dictionary.to_pylist()]
            labels_B = pa.array(named, pa.string()).take(encoded.indices)
        else:
            # A list of labels (several a row) has no class of its own: it is counted as written.
            labels_B = pa.array([None if code is None else str(code) for code in codes.to_pylist()], pa.string())
    else:
        labels_B = pa.nulls(len(batch), pa.string())
    return pc.utf8_slice_codeunits(pc.fill_null(labels_B, NO_LABEL), 0, _MAX_LABEL_CHARS)


class _Smallest:
    """The rows with the smallest hashes, up to `count` of each class, real and synthetic apart, gathered batch by batch."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self.hashes_P = np.zeros(0, np.uint64)
        self.rows_P = np.zeros(0, np.int64)
        self.codes_P = np.zeros(0, np.int64)
        self.codes: dict[str, int] = {}

    def add(self, sample_ids: pa.Array, labels_B: pa.Array, synthetic_B: pa.Array) -> None:
        """Look at the next B rows."""
        hashes_B = hashed(sample_ids)
        encoded = labels_B.dictionary_encode()
        codes = 2 * np.array([self.codes.setdefault(label, len(self.codes)) for label in encoded.dictionary.to_pylist()], np.int64)
        self.hashes_P = np.concatenate([self.hashes_P, hashes_B])
        self.rows_P = np.concatenate([self.rows_P, np.arange(self.seen, self.seen + len(hashes_B))])
        self.codes_P = np.concatenate([self.codes_P, codes[encoded.indices.to_numpy()] + synthetic_B.to_numpy(zero_copy_only=False)])
        self.seen += len(hashes_B)
        order = np.lexsort([self.hashes_P, self.codes_P])
        kept = order[_rank_in_runs(self.codes_P[order]) < self.count]
        self.hashes_P, self.rows_P, self.codes_P = self.hashes_P[kept], self.rows_P[kept], self.codes_P[kept]

    def rows(self, labels: list[str]) -> list[int]:
        """`count` positions: the first of every class, then the seconds, …; sorted by class, real before synthetic, hash."""
        rank_P = _rank_in_runs(self.codes_P)
        chosen = np.lexsort([self.hashes_P, rank_P])[: self.count]
        place = {self.codes[label]: index for index, label in enumerate(labels)}
        ordered = sorted(chosen, key=lambda index: (place[int(self.codes_P[index]) // 2], self.codes_P[index], self.hashes_P[index]))
        return [int(self.rows_P[index]) for index in ordered]


def _rank_in_runs(codes: np.ndarray) -> np.ndarray:
    """The place of each entry within its run of equal codes."""
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])) if len(codes) else np.zeros(0, np.int64)
    return np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
