"""What a file of a store must be: its size, checked whenever a snapshot is opened, and its bytes, checked on demand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from stillroom.errors import StoreError
from stillroom.stores import Store

__all__ = ["Files", "changed_bytes", "changed_sizes", "file_facts", "require_sizes"]

# By store key: size in bytes, BLAKE3 as 64 hex characters.
Files = Mapping[str, Sequence[int | str]]

CHUNK = 8 << 20


def file_facts(store: Store, keys: Iterable[str]) -> dict[str, list[int | str]]:
    """Size and BLAKE3 of each file as it is now.

    Raises:
        FileNotFoundError: one isn't there.
    """
    return {key: _facts(store, key) for key in keys}


def changed_sizes(store: Store, files: Files) -> dict[str, str]:
    """What is wrong with these files by their sizes alone: by key, `is missing` or how many bytes it has and should have."""
    sizes = _sizes(store, files)
    wrong = {}
    for key, (wanted, _) in files.items():
        if key not in sizes:
            wrong[key] = "is missing"
        elif sizes[key] != wanted:
            wrong[key] = f"has {sizes[key]:,} bytes, not {wanted:,}"
    return wrong


def changed_bytes(store: Store, files: Files) -> dict[str, str]:
    """What is wrong with these files, every byte read; values as in `changed_sizes`, or `has other bytes`."""
    wrong = changed_sizes(store, files)
    for key, (_, wanted) in files.items():
        if key not in wrong and _facts(store, key)[1] != wanted:
            wrong[key] = "has other bytes than were written"
    return wrong


def require_sizes(store: Store, files: Files, what: str, *, all_bytes: bool = False) -> None:
    """Refuse to read on where a file is missing or has another size (with `all_bytes`: other bytes).

    Raises:
        StoreError: naming the first such file and how many there are.
    """
    wrong = (changed_bytes if all_bytes else changed_sizes)(store, files)
    if wrong:
        key, problem = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more files are wrong" if len(wrong) > 1 else ""
        raise StoreError(what, f"its file {key} {problem}{more}", "`stillroom verify` lists all damage; bring the files back from a copy, or build again")


def _sizes(store: Store, files: Files) -> dict[str, int]:
    if store.local:
        paths = {key: store.local / key for key in files}
        return {key: path.stat().st_size for key, path in paths.items() if path.is_file()}
    folders = {key.rpartition("/")[0] for key in files}
    return {key: size for folder in sorted(folders) for key, size in store.sizes(f"{folder}/").items()}


def _facts(store: Store, key: str) -> list[int | str]:
    hasher = blake3(max_threads=blake3.AUTO)
    if store.local:
        path: Path = store.local / key
        size = path.stat().st_size
        if size:
            hasher.update_mmap(path)
        return [size, hasher.hexdigest()]
    size = 0
    for chunk in store.stream(key, CHUNK):
        hasher.update(chunk)
        size += len(chunk)
    return [size, hasher.hexdigest()]
