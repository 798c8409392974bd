"""A store: a folder or an object-store URI with small objects and Lance tables.

Nothing in a store is an absolute path, so a copied store works.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillroom.remote import RETRIES, ask, check_uri, fault_of, reaching
from stillroom.sealed import damaged, seal, unseal
from stillroom.shapes import wrong_shape

__all__ = ["Store"]

# A wrong uri would otherwise be announced on stderr; set before lance is imported.
os.environ.setdefault("LANCE_LOG", "error")
CREATE_ATTEMPTS = 3


class Store:
    """Where tables and small objects are.

    Args:
        uri: a folder (made when first written to) or `s3://bucket/prefix`; credentials come from the environment.

    Raises:
        InputError: the uri is of another kind, or holds a secret.
        UnreachableError: from every method, where an object store doesn't answer or refuses.
    """

    def __init__(self, uri: "str | Path | Store") -> None:
        text = uri.uri if isinstance(uri, Store) else str(uri)
        self.uri: str = text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())
        if not self.local:
            check_uri(self.uri)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    @property
    def local(self) -> Path | None:
        """The folder, or None where the store is an object store."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def objects(self) -> Any:
        """The `obstore` store for small objects."""
        if "_objects" not in self.__dict__:
            from obstore.store import LocalStore, from_url

            with reaching(self.uri):
                self._objects = LocalStore(self.uri, mkdir=True) if self.local else from_url(self.uri, retry_config=RETRIES)
        return self._objects

    def table_uri(self, name: str) -> str:
        """Where the Lance table of that name is; `lancedb.connect(uri).open_table(name)` opens the published ones."""
        return f"{self.uri}/{name}.lance"

    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return self.local.is_dir() if self.local else ask(self.uri, lambda: any(self.objects.list(None)))

    def read(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        if self.local and not self.local.is_dir():
            return None  # a look at a store that isn't there must not make it
        try:
            return ask(self.uri, lambda: bytes(self.objects.get(key).bytes()))
        except FileNotFoundError:
            return None

    def read_json(self, key: str) -> Any:
        """The value of a sealed object, or None where there is none.

        Raises:
            StoreError: it is damaged, or not what stillroom writes there.
        """
        raw = self.read(key)
        if raw is None:
            return None
        value = unseal(raw, key)
        if wrong := wrong_shape(key, value):
            raise damaged(key, f"it isn't what stillroom writes there, by {wrong}")
        return value

    def list(self, prefix: str) -> list[str]:
        """Keys of all objects under a prefix that ends with a slash (or everything for ""), sorted."""
        if self.local and not self.local.is_dir():
            return []
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Size in bytes of all objects under a prefix that ends with a slash (or everything for ""), by key."""
        if self.local and not self.local.is_dir():
            return {}
        listed = ask(self.uri, lambda: [entry for chunk in self.objects.list(prefix.rstrip("/") or None) for entry in chunk])
        return {entry["path"]: int(entry["size"]) for entry in listed}

    def stream(self, key: str, chunk_bytes: int) -> Iterator[bytes]:
        """The object's bytes, about so many at a time."""
        with reaching(self.uri):
            for chunk in self.objects.get(key).stream(chunk_bytes):
                yield bytes(chunk)

    def put_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a sealed object, over an earlier one if there is one."""
        self.put(key, seal(value))

    def create_json(self, key: str, value: Mapping[str, Any]) -> bool:
        """Write a sealed object if there is none of that key; as `create`."""
        return self.create(key, seal(value))

    def put(self, key: str, value: bytes) -> None:
        """Write an object, over an earlier one if there is one."""
        ask(self.uri, lambda: self.objects.put(key, value))

    def create(self, key: str, value: bytes) -> bool:
        """Write an object if there is none of that key: one of several writers wins and gets True.

        In an object store, an object of these very bytes counts as ours: an answer may get lost on its
        way, and then the next try finds what the first one wrote. Who must tell itself from others writes a token.
        """
        from obstore.exceptions import AlreadyExistsError

        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                self.objects.put(key, value, mode="create")
                return True
            except (AlreadyExistsError, FileExistsError):
                return self.local is None and self.read(key) == value
            except Exception as error:
                if (fault := fault_of(error, self.uri)) is None:
                    raise
                # Whether it was written is not known: look before trying again.
                if (standing := self.read(key)) is not None:
                    return standing == value
                if attempt == CREATE_ATTEMPTS:
                    raise fault from None
        raise AssertionError("the last attempt returns or raises")

    def remove(self, key: str) -> None:
        """Delete one object, if it is there."""
        with suppress(FileNotFoundError):
            ask(self.uri, lambda: self.objects.delete(key))

    def delete(self, prefix: str) -> None:
        """Delete all objects under a prefix; another process may do the same."""
        keys = self.list(prefix)
        if not self.local:
            ask(self.uri, lambda: self.objects.delete(keys))
            return
        for key in keys:
            self.remove(key)
