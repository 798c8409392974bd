"""An HTTP proxy that does to S3 requests what networks and busy servers do.

Which request suffers, and how, is decided by a seed, the request's method and path, and how often
it came before: not by the order in which threads happen to send them.
"""

import http.client
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from blake3 import blake3

# What may befall a request. "after": the server did what it was asked, and the client doesn't hear of it.
# One more can be aimed: "never refused" says that a conditional put succeeded, as a server that doesn't know conditions does.
KINDS = ("cut before", "cut after", "500 before", "503 before", "500 after", "cut in answer", "delay")
DELAY_S = 0.05
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Aimed(NamedTuple):
    """A fault for requests of one kind, the first `times` of them."""

    method: str
    path: str
    kind: str
    times: int


@dataclass
class Plan:
    """Which requests suffer.

    Args:
        seed, rate: a share of all requests, the same ones for the same seed.
        kinds: what befalls them, one of these each.
        in_a_row: a request that is sent again is let through after so many faults; None spares none.
    """

    seed: int = 0
    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    in_a_row: int | None = 2
    aimed: list[Aimed] = field(default_factory=list)

    def aim(self, method: str, path: str, kind: str, times: int = 1) -> "Plan":
        """Have the next `times` requests of a method, whose path matches an expression, suffer `kind`."""
        self.aimed.append(Aimed(method, path, kind, times))
        return self


class FaultyProxy:
    """A proxy on loopback in front of an S3 server.

    Args:
        upstream: the server's endpoint.

    `plan` may be replaced at any time; `suffered` counts faults by kind, `requests` all requests by method.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.follow(Plan())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def follow(self, plan: Plan) -> None:
        """From now on, follow this plan; counts begin anew."""
        with self._lock:
            self.plan = plan
            self.suffered: Counter[str] = Counter()
            self.requests: Counter[str] = Counter()
            self._seen: Counter[tuple[str, str]] = Counter()
            self._in_a_row: Counter[tuple[str, str]] = Counter()
            self._aimed: Counter[Aimed] = Counter()

    def fault(self, method: str, path: str) -> str:
        """What befalls this request; "" for nothing."""
        with self._lock:
            self.requests[method] += 1
            kind = self._decide(method, path)
            if kind:
                self.suffered[kind] += 1
            return kind

    def _decide(self, method: str, path: str) -> str:
        for aimed in self.plan.aimed:
            if method == aimed.method and re.search(aimed.path, path) and self._aimed[aimed] < aimed.times:
                self._aimed[aimed] += 1
                return aimed.kind
        request = (method, path)
        self._seen[request] += 1
        drawn = blake3(f"{self.plan.seed}/{method}/{path}/{self._seen[request]}".encode()).digest()
        hit = int.from_bytes(drawn[:4], "little") < self.plan.rate * 2**32
        if not hit or self._in_a_row[request] == self.plan.in_a_row:
            self._in_a_row[request] = 0
            return ""
        self._in_a_row[request] += 1
        return self.plan.kinds[drawn[4] % len(self.plan.kinds)]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = proxy.fault(self.command, self.path)
        if kind == "delay":
            time.sleep(DELAY_S)
        if kind == "cut before":
            return self._cut()
        if kind in ("500 before", "503 before"):
            return self._answer(int(kind[:3]), [], b"")
        status, headers, answer = self._ask(proxy.upstream, body)
        if kind == "never refused" and status == 412:
            return self._answer(200, [("ETag", '"0"')], b"")
        if kind == "cut after":
            return self._cut()
        if kind == "500 after":
            return self._answer(500, [], b"")
        self._answer(status, headers, answer, cut_at=len(answer) // 2 if kind == "cut in answer" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _ask(self, upstream: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass the request on as it came: its signature covers the Host header, so that stays too."""
        connection = http.client.HTTPConnection(upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut_at: int | None = None) -> None:
        self.send_response_only(status)
        # The answer to HEAD has the length of a body that isn't sent.
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body))) if self.command == "HEAD" else str(len(body))
        for name, value in [*((n, v) for n, v in headers if n.lower() not in HOP_BY_HOP), ("Content-Length", length)]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut_at is None else body[:cut_at])
        if cut_at is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        """Requests are counted, not logged."""
