"""Import: a Parquet export becomes a snapshot in another store, with the same rows in the same order, or nothing does.

Everything is checked before it counts: the bytes of each file, heavy values against their hashes, and
all light columns against the digest that the snapshot had. A crash leaves data files that `gc` removes.
"""

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.digests import json_digest
from stillroom.errors import InputError, StoreError
from stillroom.fields import vector_names
from stillroom.format import require_format
from stillroom.sealed import unseal
from stillroom.shapes import EXPORTED, wrong_shape
from stillroom.snapshots import withdrawn
from stillroom.stores import Store
from storage.export import ABOUT, FORMAT, MANIFEST, REPORT, Report, about_export, false_hash
from storage.manifests import list_manifests
from storage.publish import publish_manifest, write_version
from storage.runs import begin_run, end_run
from storage.tombstones import read_tombstones
from storage.whole import file_digest

__all__ = ["Imported", "import_snapshot"]


@dataclass(frozen=True)
class Imported:
    """A snapshot that is in the store now; `same` where it was before."""

    snapshot: str
    origin: str
    digest: str
    splits: dict[str, int]
    same: bool


def import_snapshot(source: Path, store: Store, *, command: str = "", report: Report = lambda done, total: None) -> Imported:
    """Make an exported snapshot one of `store`: same name, digest, splits and order of rows; the number is the next free one.

    Args:
        source: the folder of an export `--as parquet` of all splits.
        command: what the store's log of runs says would go on with it.
        report: told how many rows are written.

    Raises:
        InputError: no such export; or a file, a row or the manifest isn't as it was exported; or this store
            withdrew that snapshot, or was told to forget one of its rows. No snapshot is made.
        StoreError: the store can't be written.
    """
    about = _checked_about(source)
    manifest = _checked_manifest(source, about)
    require_format(store)
    if held := _held_already(source, store, manifest):
        return _imported(held, about, same=True)
    _check_files(source, about)
    run = begin_run(store, manifest["name"], {}, command)
    try:
        written = _written(source, about, manifest, store, report)
        published = publish_manifest(store, written)
        same = published["table"]["version"] != written["table"]["version"]  # another import was first
        if not same and (source / REPORT).exists():  # sealed as it stood in its store
            store.put(f"snapshots/{published['name']}/{published['number']}.html", (source / REPORT).read_bytes())
    except BaseException as error:
        end_run(store, run, "Failed", stage="import", message=str(error))
        raise
    end_run(store, run, "Completed")
    return _imported(published, about, same=same)


def _checked_about(source: Path) -> dict[str, Any]:
    about = about_export(source)
    if about.get("format") != FORMAT:
        raise InputError(str(source), f"is an export of format {about.get('format')}, and this stillroom reads {FORMAT}", "install a newer stillroom")
    if about["as"] != "parquet":
        raise InputError(str(source), f"is an export --as {about['as']}, which doesn't keep everything", f"export {about['snapshot']} --as parquet")
    return about


def _checked_manifest(source: Path, about: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest = unseal((source / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, StoreError):
        raise _damaged(source, about, MANIFEST, "is missing or damaged") from None
    if wrong := wrong_shape(MANIFEST, manifest, EXPORTED):
        raise _damaged(source, about, MANIFEST, f"isn't the manifest of a snapshot, by {wrong}")
    if manifest["digest"] != about["digest"]:
        raise _damaged(source, about, MANIFEST, "is that of another snapshot")
    if dict(manifest["splits"]) != about["splits"]:
        raise InputError(str(source), f"holds {', '.join(about['splits'])} of {', '.join(manifest['splits'])}", "export it without --split")
    return manifest


def _check_files(source: Path, about: dict[str, Any]) -> None:
    for file in about["files"]:
        path = source / file["file"]
        if not path.is_file():
            raise _damaged(source, about, file["file"], "is missing")
        if path.stat().st_size != file["bytes"] or file_digest(path) != file["blake3"]:
            raise _damaged(source, about, file["file"], f"is not the file that was exported (its BLAKE3 isn't {file['blake3'][:12]}…)")


def _written(source: Path, about: dict[str, Any], manifest: dict[str, Any], store: Store, report: Report) -> dict[str, Any]:
    """Write the rows as a version of the published table, and give the manifest that would publish them."""
    name = manifest["name"]
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(b64decode(about["schema"])))
    except (KeyError, ValueError, OSError) as error:
        raise _damaged(source, about, ABOUT, "has no schema that can be read") from error
    fingerprint = json_digest({"import": name, "digest": about["digest"]})

    def check(found: str) -> None:
        if found != about["digest"]:
            raise InputError(str(source), f"its rows have digest {found[:12]}…, those of {about['snapshot']} have {about['digest'][:12]}…", "export it again")

    rows = _unforgotten(source, store, manifest, _rows(source, about, schema, report))
    # Indexes aren't exported: they are made again.
    index = {column: facts["metric"] for column, facts in manifest.get("indexes", {}).items() if column in vector_names(schema)}
    written = write_version(store, name, schema, rows, fingerprint, index=index, check=check)
    return {
        **_made_elsewhere(manifest),
        **written.facts(store),
        "imported": {
            "from": about["snapshot"],
            "created": manifest["created"],
            "table": {key: manifest["table"][key] for key in ("version", "fingerprint", "digest")},
            "stillroom": about["stillroom"],
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _rows(source: Path, about: dict[str, Any], schema: pa.Schema, report: Report) -> Iterator[pa.RecordBatch]:
    done = 0
    for entry in about["files"]:
        if "split" not in entry:
            continue
        for table in _tables(source, about, entry["file"]):
            if table.schema.names != schema.names or table.schema.types != schema.types:
                raise _damaged(source, about, entry["file"], "has other columns than the snapshot")
            for batch in table.combine_chunks().to_batches():
                batch = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
                if wrong := false_hash(batch):
                    raise _damaged(source, about, entry["file"], f"holds a damaged row: the {wrong} is not what its hash says")
                yield batch
                done += batch.num_rows
                report(done, about["rows"])


def _tables(source: Path, about: dict[str, Any], name: str) -> Iterator[pa.Table]:
    """A file's row groups: each is what the export meant to be held in memory."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source / name) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, about, name, f"can't be read as Parquet: {str(error).splitlines()[0]}") from error


def _unforgotten(source: Path, store: Store, manifest: dict[str, Any], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, unless this store was told to forget a row of them."""
    tombstones = read_tombstones(store)
    tables = [stage["table"]["name"] for stage in manifest["stages"] if stage["shape"] == "source"] or [""]
    for batch in batches:
        if tombstones and (count := int(np.any([tombstones.forgotten(batch, table) for table in tables], axis=0).sum())):
            raise InputError(str(source), f"holds {count} rows or more that {store.uri} was told to forget", "import a snapshot that was built without them")
        yield batch


def _made_elsewhere(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as it was, but for the tables that stay behind: version 0 is in no store, so nobody takes another build's for them."""

    def absent(table: dict[str, Any] | None) -> dict[str, Any] | None:
        return table and {**table, "version": 0}

    stages = [{**stage, "table": absent(stage["table"]), "removed": absent(stage["removed"])} for stage in manifest["stages"]]
    proof = manifest["proof"]
    if proof and "table" in proof:
        proof = {**proof, "table": absent(proof["table"])}
    return {**{name: item for name, item in manifest.items() if name != "indexes"}, "stages": stages, "proof": proof}


def _held_already(source: Path, store: Store, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a snapshot of the same content, if the store has one."""
    for held in list_manifests(store, manifest["name"]):
        if all(held[key] == manifest[key] for key in ("digest", "trial", "splits")):
            if mark := withdrawn(store, held["name"], held["number"]):
                raise InputError(str(source), f"holds what was withdrawn from {store.uri} as {held['name']}@{held['number']}: {mark['reason']}")
            return held
    return None


def _damaged(source: Path, about: dict[str, Any], file: str, problem: str) -> InputError:
    return InputError(str(source), f"{file} {problem}; nothing is imported", f"export {about['snapshot']} again, or copy the folder again")


def _imported(manifest: dict[str, Any], about: dict[str, Any], *, same: bool) -> Imported:
    return Imported(f"{manifest['name']}@{manifest['number']}", about["snapshot"], manifest["digest"], dict(manifest["splits"]), same)
