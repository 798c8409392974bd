"""Vector indexes of a published table, by which a search reads a part of its vectors.

An index is no part of what a table holds: it is a version of its own on top of the rows', with the same
rows and the same digest. A manifest names that version and its files, so `verify` reads them, and
`gc` and `forget` let them go with the snapshot.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import lance
import pyarrow as pa

from stillroom.errors import InputError
from stillroom.records import TableRef
from stillroom.remote import ask
from stillroom.stores import Store
from storage.commits import commit_on

__all__ = ["KIND", "SMALLEST_ROWS", "add_indexes", "index_bytes"]

# Vectors in lists around the centres of k-means, a byte a number: a quarter of what float32 takes.
KIND = "IVF_SQ"
# So few vectors are searched as fast without one, and exactly.
SMALLEST_ROWS = 1024


def add_indexes(store: Store, table: TableRef, metrics: Mapping[str, str]) -> tuple[TableRef, dict[str, Any]]:
    """Index columns of the newest version of a table.

    Nothing is visible before the one commit; a crash leaves files that `gc` removes.

    Args:
        metrics: `cosine`, `l2` or `dot`, by column.

    Returns:
        The version with the indexes, which is the same one where no column has enough vectors; and of each column
        its `metric`, its `kind` (null: no index), and how many vectors it has.

    Raises:
        CommitConflictError: somebody else's version came on top; this one has no indexes.
        InputError: Lance finds no vector that it could place, or can't say the column's name.
    """
    if odd := [column for column in metrics if "`" in column]:
        raise InputError(f"publish.index.{odd[0]}", "Lance indexes no column whose name has a backtick", "give the column another name")
    dataset = ask(store.uri, lambda: lance.dataset(store.table_uri(table.name), version=table.version))
    facts: dict[str, Any] = {}
    made = []
    for column, metric in metrics.items():
        vectors = ask(store.uri, partial(dataset.count_rows, filter=f"`{column}` IS NOT NULL"))
        facts[column] = {"metric": metric, "kind": KIND if vectors >= SMALLEST_ROWS else None, "vectors": vectors}
        if vectors >= SMALLEST_ROWS:
            made.append(ask(store.uri, partial(_make, dataset, column, metric)))
    return (commit_on(store, table, lance.LanceOperation.CreateIndex(made, [])) if made else table), facts


def index_bytes(schema: pa.Schema, rows: int, columns: Iterable[str]) -> int:
    """About what indexes of these columns take on the disk."""
    return sum(rows * schema.field(column).type.list_size for column in columns)


def _make(dataset: Any, column: str, metric: str) -> Any:
    fragments = [fragment.fragment_id for fragment in dataset.get_fragments()]
    try:
        return dataset.create_index_uncommitted(column, KIND, name=f"{column}_idx", metric=metric, fragment_ids=fragments)
    except RuntimeError as error:
        if "KMeans" not in str(error):
            raise
        hint = "vectors of nothing but zeros have no direction: leave it out, or write l2" if metric == "cosine" else "leave it out"
        raise InputError(f"publish.index.{column}", "none of its vectors can be placed", hint) from error
