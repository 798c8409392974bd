"""Snapshots: opened by name, read as torch, Arrow or Polars. Opening reads the manifest alone."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillroom.errors import InputError, StoreError
from stillroom.format import require_format
from stillroom.integrity import require_sizes
from stillroom.records import TableRef
from stillroom.stored import StoredTable
from stillroom.stores import Store

if TYPE_CHECKING:
    import polars as pl

    from stillroom.datasets import TorchSplit
    from stillroom.operators import Table
    from stillroom.streams import Stream

__all__ = ["NUMBER", "Snapshot", "default_store", "list_snapshots", "manifest_of", "numbered", "open", "promoted", "withdrawn"]

# How numbers stand in the names of objects.
NUMBER = "[1-9][0-9]{0,17}"


def default_store() -> str:
    """The store that `STILLROOM_STORE` names, else `./.stillroom/store`."""
    return os.environ.get("STILLROOM_STORE", "./.stillroom/store")


def open(name: str, store: str | Store | None = None, *, verify: bool = False) -> "Snapshot":
    """Open a snapshot: `digits@3`, or `digits` for the promoted one.

    The manifest's checksum and the sizes of its files are checked, which takes milliseconds.

    Args:
        verify: read every byte of the files as well.

    Raises:
        InputError: there is no such snapshot, or none of that name is promoted.
        StoreError: its manifest or a file is damaged, it was withdrawn, or the store has another format.
    """
    found = Store(store if store is not None else default_store())
    manifest = manifest_of(name, found)
    if mark := withdrawn(found, manifest["name"], manifest["number"]):
        raise StoreError(f"{manifest['name']}@{manifest['number']}", f"was withdrawn at {mark['at']}: {mark['reason']}", mark["way_out"])
    require_sizes(found, manifest["files"], f"{manifest['name']}@{manifest['number']}", all_bytes=verify)
    return Snapshot(found, manifest)


def manifest_of(name: str, store: str | Store) -> dict[str, Any]:
    """The manifest of a snapshot, whatever became of its table; `name` as in `open`.

    Raises:
        InputError, StoreError: as `open`.
    """
    found = Store(store)
    require_format(found)
    plain, _, number = name.partition("@")
    numbers = numbered(found, f"snapshots/{plain}/")
    if not numbers:
        known = sorted({key.split("/")[1] for key in found.list("snapshots/")})
        raise InputError(name, f"no snapshot of that name in {found.uri}", f"known: {', '.join(known)}" if known else "`stillroom build RECIPE` makes one")
    if number:
        if number not in map(str, numbers):
            raise InputError(name, "no such number", f"{plain} has {', '.join(f'@{n}' for n in numbers[-5:])}")
        chosen = int(number)
    else:
        pointer = promoted(found, plain)
        if pointer is None or pointer["number"] is None:
            raise InputError(
                name, "no snapshot of that name is promoted", f"open '{plain}@{numbers[-1]}', or run `stillroom promote {plain}@{numbers[-1]} --reason …`"
            )
        chosen = pointer["number"]
    manifest: dict[str, Any] = found.read_json(f"snapshots/{plain}/{chosen}.json")
    return manifest


def list_snapshots(store: str | Store) -> list[dict[str, Any]]:
    """Every snapshot of a store: name, number, created, rows, digest, promoted, trial, withdrawn."""
    found = Store(store)
    require_format(found)
    lines = []
    for name in sorted({key.split("/")[1] for key in found.list("snapshots/")}):
        pointer = promoted(found, name)
        for number in numbered(found, f"snapshots/{name}/"):
            manifest = found.read_json(f"snapshots/{name}/{number}.json")
            lines.append(
                {key: manifest[key] for key in ("name", "number", "created", "rows", "digest", "trial")}
                | {"promoted": bool(pointer and pointer["number"] == number), "withdrawn": withdrawn(found, name, number) is not None}
            )
    return lines


class Snapshot:
    """An immutable, numbered set of splits.

    Args:
        store: where it is.
        manifest: what says what it is: recipe, stages, digests, gates, proof.
    """

    def __init__(self, store: Store, manifest: dict[str, Any]) -> None:
        self.store, self.manifest = store, manifest

    def __repr__(self) -> str:
        splits = ", ".join(f"{split}: {rows:,}" for split, rows in self.splits.items())
        return f"Snapshot({self.name}, {splits})"

    @property
    def name(self) -> str:
        """`digits@3`."""
        return f"{self.manifest['name']}@{self.manifest['number']}"

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split."""
        return dict(self.manifest["splits"])

    @property
    def schema(self) -> pa.Schema:
        """The columns of all splits."""
        return self.table().schema

    def table(self, split: str | None = None) -> StoredTable:
        """A split (or all of them) as operators see tables: bounded scans, takes, light frames."""
        if split is not None and split not in self.splits:
            raise InputError(f"{self.name}: split '{split}'", "no such split", f"it has {', '.join(self.splits)}")
        return StoredTable(self.store, TableRef.published(self.manifest, split))

    def torch(self, split: str, **how: Any) -> "TorchSplit":
        """A map-style torch dataset: image, label and, with `views="stored"`, the soft label of the epoch's view.

        `how` takes what `stillroom.datasets.TorchSplit` takes: views, seed, pixels, channels.
        """
        from stillroom.datasets import TorchSplit

        return TorchSplit(self.table(split), **how)

    def loader(
        self, split: str, *, batch_size: int, views: str | None = None, seed: int = 0, pixels: str = "float", channels: int | None = None, **more: Any
    ) -> Any:
        """A DataLoader over the split whose workers come from a fork server, in an order that seed and epoch decide.

        `more` goes to `stillroom.datasets.loader` and from there to DataLoader: num_workers, shuffle, drop_last, pin_memory …
        """
        from stillroom.datasets import loader

        return loader(self.torch(split, views=views, seed=seed, pixels=pixels, channels=channels), batch_size=batch_size, **more)

    def stream(self, split: str, *, batch_size: int, cache_bytes: int | None = None, cache: str | Path | None = None, **how: Any) -> "Stream":
        """Ready batches in an order that seed and epoch decide, sharded by rank and worker, resumable at any step.

        Args:
            split: what to stream.
            batch_size: rows of one step on all ranks together.
            cache_bytes: about how many bytes of a bucket's rows are kept on the local disk, shared by all processes; None is 4 GiB, 0 keeps
                none. A store that is a folder has no cache.
            cache: the folder for them; None is `cache` below `STILLROOM_HOME`, which is `~/.stillroom` unless set.
            how: what `stillroom.streams.stream` takes: seed, views, pixels, channels, side_px, image, shuffle, group, per_group,
                views_per_sample, columns, weights, micro_batches, drop_last, rank, world_size, num_workers.

        Raises:
            InputError: arguments that exclude each other; a batch size that ranks can't share.
        """
        from stillroom.cached import CACHE_BYTES, CachedTable, cache_folder
        from stillroom.streams import stream

        table: Table = self.table(split)
        digest = f"{self.manifest['digest']} {split}"
        limit_bytes = CACHE_BYTES if cache_bytes is None else cache_bytes
        if self.store.local is None and limit_bytes > 0:
            table = CachedTable(self.table(split), digest, Path(cache) if cache else cache_folder(), limit_bytes)
        return stream(table, rows=self.splits[split], digest=digest, batch_size=batch_size, **how)

    def arrow(self, split: str, columns: list[str] | None = None, batch_size: int = 1024) -> Iterator[pa.RecordBatch]:
        """Record batches in the snapshot's order, memory bounded by one of them."""
        return self.table(split).scan(columns, batch_size)

    def polars(self, split: str, columns: list[str] | None = None) -> "pl.DataFrame":
        """The split as a frame: its light columns, or those named."""
        return self.table(split).frame(columns)


def numbered(store: Store, folder: str) -> list[int]:
    """The numbers N of all objects `<folder>N.json`, in order; what is called otherwise is nobody's."""
    form = re.compile(rf"{re.escape(folder)}({NUMBER})\.json")
    return sorted(int(found[1]) for key in store.list(folder) if (found := form.fullmatch(key)))


def promoted(store: Store, name: str) -> dict[str, Any] | None:
    """The latest word on which snapshot is promoted, or None where nothing ever was."""
    numbers = numbered(store, f"promoted/{name}/")
    return store.read_json(f"promoted/{name}/{numbers[-1]}.json") if numbers else None


def withdrawn(store: Store, name: str, number: int) -> dict[str, Any] | None:
    """Why a snapshot's table was taken away (`reason`, `at`, `by`, `way_out`), or None where it stands. Its manifest stays."""
    mark: dict[str, Any] | None = store.read_json(f"withdrawn/{name}/{number}.json")
    return mark
