"""Commits: fragments that anyone wrote become one version of a table, pinned by a tag."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from stillroom.errors import StoreError, UnreachableError
from stillroom.integrity import changed_sizes, file_facts
from stillroom.records import TableRef
from stillroom.remote import ask, fault_of, reaching
from stillroom.stores import Store

__all__ = ["OURS", "commit_fragments", "commit_on", "data_files", "pin", "version_facts", "version_files", "write_batches"]

MAX_ROWS_PER_FILE = 1 << 20
# The property by which our versions are told from those that somebody else made.
OURS = "stillroom.fingerprint"
# After so many commits with an unknown outcome, each looked up and not found, the store is given up.
COMMIT_ATTEMPTS = 3


def write_batches(store: Store, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> list[str]:
    """Write rows as data files of a table, visible to nobody; returns the fragments' metadata as JSON texts.

    A crash leaves files that `gc` removes. An exception raised by `batches` comes out as it was raised.
    """
    raised: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        # Lance would turn an exception in its reader into an OSError with our traceback in its text.
        try:
            yield from batches
        except GeneratorExit:
            raise  # Lance gave up first, for a reason of its own
        except BaseException as error:
            raised.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, guarded())
    try:
        with reaching(store.uri):
            fragments = write_fragments(reader, store.table_uri(name), schema=schema, mode="overwrite", max_rows_per_file=MAX_ROWS_PER_FILE)
    except Exception:
        if raised:
            raise raised[0] from None
        raise
    return [json.dumps(fragment.to_json()) for fragment in fragments]


def data_files(name: str, fragments: Sequence[str]) -> list[str]:
    """Store keys of the data files of fragments."""
    return list(_sizes(name, fragments))


def _exist(store: Store, name: str, fragments: Sequence[str]) -> bool:
    """Whether every data file of these fragments is there, with its size; Lance itself would commit missing ones."""
    return not changed_sizes(store, {key: [size, ""] for key, size in _sizes(name, fragments).items()})


def version_facts(store: Store, refs: Sequence[TableRef], known: Mapping[str, list[int | str]]) -> dict[str, list[int | str]]:
    """Size and BLAKE3 of every file of these versions; those of data files are known from when each was written."""
    keys = [key for ref in refs for key in version_files(store, ref)]
    return {key: known[key] for key in keys if key in known} | file_facts(store, [key for key in keys if key not in known])


def version_files(store: Store, ref: TableRef) -> list[str]:
    """Store keys of all files that one version of a table consists of, and those of the empty version that it began with."""
    dataset = ask(store.uri, lambda: lance.dataset(store.table_uri(ref.name), version=ref.version))
    tracked = ask(store.uri, lambda: list(dataset.tracked_files(min_version=ref.version)))
    files = [file["path"] for batch in tracked for file in batch.to_pylist() if file["version"] == ref.version]
    first: Any = ask(store.uri, lambda: dataset.read_transaction(1))
    files += [f"_versions/{(1 << 64) - 2}.manifest", f"_transactions/{first.read_version}-{first.uuid}.txn"]
    return sorted({f"{ref.name}.lance/{file}" for file in files})


def commit_fragments(store: Store, name: str, schema: pa.Schema, fragments: Sequence[str], *, fingerprint: str, digest: str = "") -> TableRef:
    """Make fragments, in this order, one new version of a table, tagged by the fingerprint.

    Before the commit nothing is visible; after it the version is there as a whole. Versions that
    others commit meanwhile stay as they are: the commit is tried again on the newest.

    Raises:
        StoreError: a data file of a fragment is gone.
    """
    if not _exist(store, name, fragments):
        raise StoreError(f"table '{name}'", "a data file written by this build is gone before its commit", "run the build again")
    uri = store.table_uri(name)
    _ensure_table(store, uri, schema)
    metadata = [lance.FragmentMetadata.from_json(text) for text in fragments]
    dataset = _commit(store, uri, lance.LanceOperation.Overwrite(schema, metadata), fingerprint)
    _pin(store, dataset, fingerprint)
    return TableRef(name, dataset.version, dataset.count_rows(), fingerprint, digest)


def commit_on(store: Store, table: TableRef, operation: Any) -> TableRef:
    """Commit an operation that keeps the rows on one version of a table; the tag of its fingerprint moves to what this made.

    Raises:
        CommitConflictError: somebody else's version came first, and has other rows.
    """
    dataset = _commit(store, store.table_uri(table.name), operation, table.fingerprint, base=table.version)
    _pin(store, dataset, table.fingerprint)
    return TableRef(table.name, dataset.version, table.rows, table.fingerprint, table.digest)


def _commit(store: Store, uri: str, operation: Any, fingerprint: str, base: int | None = None) -> Any:
    """Commit on the newest version, again where others come first; the dataset at the version that this made.

    On `base`, if one is given, and never on another: where others come first, that is raised.

    Lance would apply an operation twice, so after an error its transaction is looked for before it is tried again.
    """
    lost = 0
    while True:
        newest = base or ask(store.uri, lambda: lance.dataset(uri)).version
        transaction = lance.Transaction(read_version=newest, operation=operation, transaction_properties={OURS: fingerprint})
        try:
            return lance.LanceDataset.commit(uri, transaction, enable_stable_row_ids=True)
        except Exception as error:
            conflict, fault = isinstance(error, CommitConflictError), fault_of(error, store.uri)
            if not conflict and fault is None:
                raise
            if (made := _made_by(store, uri, transaction.uuid, newest)) is not None:
                return made
            if conflict and base:
                raise
            lost += not conflict
            if fault is not None and lost == COMMIT_ATTEMPTS:
                raise fault from None


def _made_by(store: Store, uri: str, transaction: str, after: int) -> Any:
    """The dataset at the version later than `after` that a transaction made, or None."""
    dataset = ask(store.uri, lambda: lance.dataset(uri))
    for version in range(after + 1, dataset.version + 1):
        with suppress(OSError, ValueError):  # gc may clear others' versions away meanwhile
            found = ask(store.uri, partial(dataset.read_transaction, version))
            if found is not None and found.uuid == transaction:
                return ask(store.uri, partial(lance.dataset, uri, version=version))
    return None


def pin(store: Store, ref: TableRef) -> None:
    """Tag the version that a record names, again: a build that came second had moved the tag to its own."""
    _pin(store, ask(store.uri, lambda: lance.dataset(store.table_uri(ref.name), version=ref.version)), ref.fingerprint)


def _pin(store: Store, dataset: Any, fingerprint: str) -> None:
    """Tag a version so that no clean-up takes it; a tag left by a build that lost the race moves."""
    tag = f"f-{fingerprint[:32]}"
    try:
        ask(store.uri, lambda: dataset.tags.create(tag, dataset.version))
    except ValueError:
        ask(store.uri, lambda: dataset.tags.update(tag, dataset.version))


def _ensure_table(store: Store, uri: str, schema: pa.Schema) -> None:
    """Create an empty table if there is none: a commit on version 0 would hide what another builder commits."""
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        if _is_there(store, uri):
            return
        try:
            with reaching(store.uri):
                lance.write_dataset(schema.empty_table(), uri, mode="create", enable_stable_row_ids=True, transaction_properties={OURS: ""})
            return
        except UnreachableError:
            if attempt == COMMIT_ATTEMPTS:
                raise
        except OSError:
            if not _is_there(store, uri):
                raise
            return  # somebody else made it meanwhile


def _is_there(store: Store, uri: str) -> bool:
    try:
        ask(store.uri, lambda: lance.dataset(uri))
    except ValueError:
        return False
    return True


def _sizes(name: str, fragments: Sequence[str]) -> dict[str, int]:
    files = [file for text in fragments for file in json.loads(text)["files"]]
    return {f"{name}.lance/data/{file['path']}": int(file["file_size_bytes"]) for file in files}
