"""The format of a store: which it has, and whether this stillroom can read it."""

import secrets

from stillroom.errors import StoreError
from stillroom.stores import Store

__all__ = ["FORMAT", "FORMAT_KEY", "format_of", "prepare", "require_format"]

# 0 had no checksums and no such file. Raise it whenever an older stillroom couldn't read what a newer one writes.
FORMAT = 1
FORMAT_KEY = "store.json"


def format_of(store: Store) -> int | None:
    """The format of a store; None where nothing was ever written."""
    found = store.read_json(FORMAT_KEY)
    if found is not None:
        return int(found["format"])
    return 0 if store.list("records/") else None


def require_format(store: Store) -> None:
    """Refuse a store that this stillroom can't read; an empty one is fine.

    Raises:
        StoreError: its format is newer, or older.
    """
    found = format_of(store)
    if found is not None and found > FORMAT:
        raise StoreError(store.uri, f"was written in format {found}, and this stillroom reads up to {FORMAT}", "install a newer stillroom")
    if found is not None and found < FORMAT:
        raise StoreError(store.uri, f"was written in format {found}, and this stillroom reads {FORMAT}", "`stillroom migrate` brings it up to date")


def prepare(store: Store) -> None:
    """Make a store's format known before anything else is written to it.

    Raises:
        StoreError: it is there, in a format that this stillroom can't write; or its server lets a second writer win.
    """
    if format_of(store) is None:
        if not store.local:
            _require_one_winner(store)
        store.create_json(FORMAT_KEY, {"format": FORMAT, "id": secrets.token_hex(16)})
    require_format(store)


def _require_one_winner(store: Store) -> None:
    """Refuse an object store in which a put that must not replace anything does: a server that doesn't know the header ignores it."""
    probe = f"beats/probe-{secrets.token_hex(8)}"
    store.create(probe, b"first")
    try:
        if store.create(probe, b"second"):
            hint = "use a server that has conditional writes (If-None-Match), or a folder"
            raise StoreError(store.uri, "its server replaces an object although it was told not to, so two builds could overwrite each other", hint)
    finally:
        store.remove(probe)
