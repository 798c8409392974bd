"""Sealed objects: JSON that carries the checksum of its own bytes, so that a flipped one is found wherever it is read."""

import json
import re
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from stillroom.errors import StoreError

__all__ = ["is_whole_text", "seal", "seal_text", "unseal"]

_TEXT_SEAL = re.compile(rb"<!-- checksum ([0-9a-f]{64}) -->\n\Z")
_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n\}\Z')


def seal(value: Mapping[str, Any]) -> bytes:
    """`value` as indented JSON whose last member, `checksum`, is the BLAKE3 of all bytes before it.

    Raises:
        ValueError: there is nothing to seal, or a float is NaN or infinite.
    """
    if not value or "checksum" in value:
        raise ValueError("a sealed object has members, and none of them is called checksum")
    body = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}").encode()
    return body + f',\n "checksum": "{blake3(body).hexdigest()}"\n}}'.encode()


def unseal(raw: bytes, key: str) -> dict[str, Any]:
    """The value of a sealed object.

    Args:
        raw: the object's bytes.
        key: where it was read, for the error's text.

    Raises:
        StoreError: there is no checksum, or the bytes are not those that were sealed.
    """
    found = _SEAL.search(raw)
    if found is None:
        raise StoreError(f"'{key}'", "has no checksum: it is cut off, or older than stillroom's first format", "`stillroom verify` says which")
    body = raw[: found.start()]
    if blake3(body).hexdigest() != found[1].decode():
        raise damaged(key, "its bytes don't match its checksum")
    value: dict[str, Any] = json.loads(body + b"\n}")
    return value


def damaged(key: str, problem: str) -> StoreError:
    """The error of an object that isn't what stillroom wrote."""
    return StoreError(f"'{key}'", f"is damaged: {problem}", "bring it back from a copy; `stillroom verify` lists all damage")


def seal_text(html: str) -> bytes:
    """A page with its BLAKE3 in a last comment."""
    body = html.encode()
    return body + f"<!-- checksum {blake3(body).hexdigest()} -->\n".encode()


def is_whole_text(raw: bytes) -> bool:
    """Whether a page is just as it was sealed."""
    found = _TEXT_SEAL.search(raw)
    return found is not None and blake3(raw[: found.start()]).hexdigest() == found[1].decode()
