"""What the session's Prefect server says."""

import json
from typing import Any
from urllib.request import Request, urlopen

from flows.server import ensure_server

__all__ = ["ask"]


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a GET, or with a body to a POST, below the API's URL."""
    request = Request(f"{ensure_server()}/{path}", None if body is None else json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)
