"""Export: a snapshot as files for other libraries, whole or absent.

Everything is written into a folder beside the target, `.TARGET.stillroom-…`, and flushed; one rename
then makes it the target. A crash before the rename leaves that folder and no target: the same command
takes its finished files over and goes on. What it was can be read in `stillroom.json` beside the data.
"""

import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
from blake3 import blake3

from stillroom.digests import json_digest
from stillroom.errors import InputError, StoreError
from stillroom.fields import heavy_kind, heavy_names, label_names
from stillroom.sealed import seal, unseal
from stillroom.shapes import EXPORT, wrong_shape
from stillroom.snapshots import Snapshot
from stillroom.stored import StoredTable, hashes
from stillroom.stores import Store
from storage.features import features_of
from storage.shards import FORMS, Form, FormName
from storage.tally import Tally
from storage.whole import appear, clear_leftovers, file_digest, flush_folder, growing, write_flushed

__all__ = ["ABOUT", "FORMAT", "MANIFEST", "REPORT", "Exported", "Report", "about_export", "export_snapshot", "false_hash", "list_exports"]

# Told how many rows of how many are done.
Report = Callable[[int, int], None]

FORMAT = 1
ABOUT, MANIFEST, REPORT = "stillroom.json", "manifest.json", "report.html"
# How much of a table is read at a time: light columns by rows, pictures by bytes.
LIGHT_ROWS, FIRST_ROWS, MOST_ROWS, BATCH_BYTES = 8192, 16, 1024, 8 << 20


@dataclass(frozen=True)
class Exported:
    """An export that is there: what it holds, and how many of its files an earlier call had finished."""

    snapshot: str
    target: str
    form: FormName
    digest: str
    splits: dict[str, int]
    files: int
    bytes: int
    taken_over: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Shard:
    path: str
    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Plan:
    """All that decides the bytes of an export; `splits` has those that aren't exported too."""

    snapshot: Snapshot
    schema: pa.Schema
    form: Form
    about: dict[str, Any]
    shards: list[_Shard]
    splits: dict[str, int]

    @property
    def key(self) -> str:
        """Two exports with one key are the same files."""
        return json_digest({"about": self.about, "pyarrow": pa.__version__})


def export_snapshot(
    snapshot: Snapshot,
    target: Path,
    form: FormName,
    *,
    splits: Sequence[str] = (),
    rows_per_file: int | None = None,
    report: Report = lambda done, total: None,
) -> Exported:
    """Write a snapshot's splits, all or those named, as files below `target`.

    Nothing stands at the target until everything does. An export that was interrupted goes on after
    its finished files, and one that is there already is left as it is. Every row is checked on the
    way: pictures against their hashes, and all light columns against the snapshot's digest.

    Args:
        rows_per_file: at most so many rows a file; default: as many as make a file of some hundred MB.

    Raises:
        InputError: no such split, something else is at the target, or the form can't hold a column.
        StoreError: the store's rows are not those of the manifest.
    """
    plan = _planned(snapshot, FORMS[form], splits, rows_per_file)
    target = target.expanduser().absolute()
    notes: list[str] = []
    if about := _standing(target, plan):
        clear_leftovers(target)
        return _exported(plan, target, about, len(plan.shards), notes)
    try:
        with growing(target, plan.key) as work:
            if about := _standing(target, plan):  # another process finished it meanwhile
                return _exported(plan, target, about, len(plan.shards), notes)
            files, taken_over = _write_shards(plan, work, report)
            about = _write_beside(plan, work / "whole", files)
            notes += _note_in_store(plan, target)
            appear(work / "whole", target)
        clear_leftovers(target)
    except OSError as error:
        if error.errno is None:  # Lance's
            raise StoreError(snapshot.name, f"can't be read: {str(error).splitlines()[0]}", f"`stillroom verify {snapshot.name}` lists all damage") from error
        raise InputError(str(target), f"can't be written: {error.strerror}", "the same command goes on where it stopped") from error
    return _exported(plan, target, about, taken_over, notes)


def about_export(folder: Path) -> dict[str, Any]:
    """What `stillroom.json` says of an export.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        raw = (folder / ABOUT).read_bytes()
    except OSError:
        raise InputError(str(folder), f"is no export of stillroom: it has no {ABOUT}", "`stillroom export NAME TARGET --as parquet` makes one") from None
    try:
        about = unseal(raw, ABOUT)
    except StoreError:
        about = {}
    if about.get("format", FORMAT) == FORMAT and wrong_shape(ABOUT, about, EXPORT):
        raise InputError(str(folder), f"its {ABOUT} is damaged", "export the snapshot again")
    return about


def list_exports(store: Store) -> list[dict[str, Any]]:
    """The exports that were made from a store, as far as it could note them: snapshot, digest, splits, target, time."""
    return [store.read_json(key) for key in store.list("exports/")]


def false_hash(batch: pa.RecordBatch) -> str | None:
    """The first row with a heavy value that isn't what its hash says, as `NAME of sample ID`; None if all are."""
    for name in heavy_names(batch.schema):
        if f"{name}_hash" not in batch.schema.names:
            continue
        found, stored = hashes(batch[name]).to_pylist(), batch[f"{name}_hash"].to_pylist()
        for row, (one, other) in enumerate(zip(found, stored, strict=True)):
            if one != other:
                return f"{name} of sample {batch['sample_id'][row].as_py()}"
    return None


def _planned(snapshot: Snapshot, form: Form, splits: Sequence[str], rows_per_file: int | None) -> _Plan:
    for split in splits:
        snapshot.table(split)  # raises for one that isn't there
    schema = _ordered(snapshot.schema)
    if form.name == "hf":
        try:
            features_of(schema)
        except TypeError as error:
            raise InputError(snapshot.name, f"has a column that `datasets` can't hold: {error}", "export it --as parquet") from None
    manifest = snapshot.manifest
    all_splits = _in_row_order(snapshot)
    chosen = {split: rows for split, rows in all_splits.items() if not splits or split in splits}
    rows_per_file = rows_per_file or _rows_per_file(manifest, form)
    shards = []
    for split, rows in chosen.items():
        count = max(-(-rows // rows_per_file), 1 if form.empty else 0)
        for index in range(count):
            path = form.path.format(split=split, index=index, count=count)
            shards.append(_Shard(path, split, index * rows_per_file, min((index + 1) * rows_per_file, rows)))
    about = {
        "format": FORMAT,
        "snapshot": snapshot.name,
        "digest": manifest["digest"],
        "as": form.name,
        "splits": chosen,
        "rows": sum(chosen.values()),
        "rows_per_file": rows_per_file,
        "stillroom": _stillroom_version(),
        "classes": label_names(schema),
        "columns": {field.name: str(field.type) for field in schema},
        "schema": b64encode(schema.serialize().to_pybytes()).decode(),
    }
    return _Plan(snapshot, schema, form, about, shards, all_splits)


def _ordered(schema: pa.Schema) -> pa.Schema:
    """The schema with each field's metadata by key: Lance gives it in another order at each opening, and it ends up in the files.

    Without decoded images, which are made from the encoded ones.
    """
    kept = [field for field in schema if heavy_kind(field) != "decoded"]
    return pa.schema([field.with_metadata(dict(sorted((field.metadata or {}).items()))) for field in kept])


def _in_row_order(snapshot: Snapshot) -> dict[str, int]:
    """Rows by split, in the order in which the splits stand in the table."""
    first = {split: int(snapshot.table(split).positions[0]) if rows else snapshot.manifest["rows"] for split, rows in snapshot.splits.items()}
    return {split: snapshot.splits[split] for split in sorted(first, key=first.__getitem__)}


def _rows_per_file(manifest: dict[str, Any], form: Form) -> int:
    """A power of two, so that a few bytes more or less in another store's copy don't move every row."""
    row_bytes = max(1.0, manifest["bytes"] / max(1, manifest["rows"]))
    return 1 << max(0, int(form.file_bytes / row_bytes).bit_length() - 1)


def _write_shards(plan: _Plan, work: Path, report: Report) -> tuple[list[dict[str, Any]], int]:
    """Write what isn't finished yet; gives what is known of each file, and how many were there.

    Raises:
        StoreError: the rows read are not the snapshot's.
    """
    name, total = plan.snapshot.name, plan.about["rows"]
    tally = Tally(plan.snapshot.table().dataset.schema)
    files, taken_over, done = [], 0, 0
    for split in plan.splits:
        table = plan.snapshot.table(split)
        shards = [shard for shard in plan.shards if shard.split == split]
        if not shards:  # not asked for; its light columns count for the digest all the same
            _count(tally, table, 0, table.rows)
        for shard in shards:
            note = _finished(work, shard)
            if note is None:
                note = _write_shard(plan, table, shard, work, tally, report, done)
            else:
                taken_over += 1
                _count(tally, table, shard.start, shard.stop)
            files.append(note)
            done += shard.stop - shard.start
            report(done, total)
    if tally.digest.hexdigest() != plan.about["digest"]:
        shutil.rmtree(work / "whole")
        raise StoreError(name, "holds other rows than its manifest says, nothing is exported", f"`stillroom verify {name}` says where")
    return files, taken_over


def _write_shard(plan: _Plan, table: StoredTable, shard: _Shard, work: Path, tally: Tally, report: Report, before: int) -> dict[str, Any]:
    """Write one shard under another name, flush it, rename it, and note that it is whole."""
    path = work / "whole" / shard.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = work / "part"
    with part.open("wb") as sink:
        with plan.form.shard(sink, plan.schema) as write:
            for batch in _batches(table, plan.schema, shard.start, shard.stop):
                if wrong := false_hash(batch):
                    raise StoreError(plan.snapshot.name, f"the {wrong} is not what its hash says", f"`stillroom verify {plan.snapshot.name}` lists all damage")
                tally.update(batch)
                write(batch)
                before += batch.num_rows
                report(before, plan.about["rows"])
        sink.flush()
        os.fsync(sink.fileno())
    note = {"file": shard.path, "split": shard.split, "rows": shard.stop - shard.start, "bytes": part.stat().st_size, "blake3": file_digest(part)}
    os.rename(part, path)
    flush_folder(path.parent)
    write_flushed(work / "done" / _note_name(shard), seal(note))
    return note


def _batches(table: StoredTable, schema: pa.Schema, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows of all columns, as many at a time as make some MB; which those are hangs on the rows alone."""
    rows = FIRST_ROWS
    while start < stop:
        (batch,) = table.scan(schema.names, batch_size=rows, start=start, stop=min(start + rows, stop))
        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        start += batch.num_rows
        rows = max(1, min(MOST_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))


def _count(tally: Tally, table: StoredTable, start: int, stop: int) -> None:
    for batch in table.scan(tally.columns, LIGHT_ROWS, start, stop):
        tally.update(batch)


def _finished(work: Path, shard: _Shard) -> dict[str, Any] | None:
    """The note of a shard that an earlier call wrote, if the file is as it was noted."""
    try:
        note = unseal((work / "done" / _note_name(shard)).read_bytes(), shard.path)
        path = work / "whole" / shard.path
        return note if path.stat().st_size == note["bytes"] and file_digest(path) == note["blake3"] else None
    except (OSError, StoreError):
        return None


def _note_name(shard: _Shard) -> str:
    return f"{shard.path.replace('/', '-')}.json"


def _write_beside(plan: _Plan, whole: Path, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the small files beside the shards, `stillroom.json` last."""
    paths = {split: [shard.path for shard in plan.shards if shard.split == split] for split in plan.about["splits"]}
    beside = plan.form.beside(plan.schema, paths, plan.about["digest"])
    if plan.form.name == "parquet":
        beside |= _provenance(plan.snapshot)
    for name, data in beside.items():
        write_flushed(whole / name, data)
    others = [{"file": name, "bytes": len(data), "blake3": blake3(data).hexdigest()} for name, data in beside.items()]
    about = {**plan.about, "files": [*files, *others]}
    write_flushed(whole / ABOUT, seal(about))
    return about


def _provenance(snapshot: Snapshot) -> dict[str, bytes]:
    """Manifest and report: with them, `stillroom import` makes the same snapshot elsewhere."""
    name, _, number = snapshot.name.partition("@")
    html = snapshot.store.read(f"snapshots/{name}/{number}.html")
    return {MANIFEST: seal(snapshot.manifest), **({REPORT: html} if html else {})}


def _note_in_store(plan: _Plan, target: Path) -> list[str]:
    """Note the export in the store before anybody can see it: whoever must forget a sample asks for its copies."""
    about = {name: plan.about[name] for name in ("snapshot", "digest", "as", "splits", "rows", "stillroom")}
    note = {**about, "target": str(target), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    store = plan.snapshot.store
    try:
        store.put_json(f"exports/{json_digest([str(target), plan.key])[:32]}.json", note)
    except Exception as error:
        # Whoever may only read the store exports all the same. obstore has an error class of its own for each cloud's refusal.
        return [f"{store.uri} doesn't know of this export: it can't be written ({str(error).splitlines()[0]})"]
    return []


def _standing(target: Path, plan: _Plan) -> dict[str, Any] | None:
    """What stands at the target, if it is this export; None if nothing does.

    Raises:
        InputError: it is something else, or this export with a file missing.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        about = about_export(target) if target.is_dir() else {}
    except InputError:
        about = {}
    if {name: value for name, value in about.items() if name != "files"} != plan.about:
        what = f"is an export of {about['snapshot']} already" if "snapshot" in about else "is there already"
        raise InputError(str(target), what, "give another name, or remove it first")
    for file in about["files"]:
        path = target / file["file"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise InputError(str(target), f"is this export, but its {file['file']} is damaged", "remove it and export again")
    return about


def _exported(plan: _Plan, target: Path, about: dict[str, Any], taken_over: int, notes: list[str]) -> Exported:
    shards = [file for file in about["files"] if "split" in file]
    size = sum(file["bytes"] for file in about["files"])
    return Exported(plan.snapshot.name, str(target), plan.form.name, about["digest"], dict(about["splits"]), len(shards), size, taken_over, notes)


def _stillroom_version() -> str:
    try:
        return version("stillroom")
    except PackageNotFoundError:
        return "unknown"
