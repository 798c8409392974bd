"""What the session's Prefect server says."""

import json
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from flows.server import ensure_server
from tests.waiting import wait_for

__all__ = ["ask"]

PATIENCE_S = 60


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a GET, or with a body to a POST, below the API's URL."""
    request = Request(f"{ensure_server()}/{path}", None if body is None else json.dumps(body).encode(), {"content-type": "application/json"})
    (answer,) = wait_for(lambda: _answer(request), PATIENCE_S)
    return answer


def _answer(request: Request) -> list[Any]:
    """The answer, or nothing while the server says that its database is busy, which Prefect's own client waits for too."""
    try:
        with urlopen(request, timeout=10) as answer:
            return [json.load(answer)]
    except HTTPError as error:
        if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        return []
