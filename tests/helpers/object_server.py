"""A small HTTP server of one object, which fails on demand.

``GET /folder/change`` replaces the object by another one.

It runs in threads of the test's own process; what reads from it are children.  Faults are drawn
from a seeded generator, so a run with one reader at a time is the same every time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import random
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

__all__ = ["FAULTS", "ObjectServer", "object_server"]

FAULTS = ("error", "hang", "reset", "short", "less")
"""What can go wrong with one request: an HTTP error, no answer, a connection that is reset in the
middle of the body, one that ends there, and an answer that has fewer bytes and says so."""


@dataclasses.dataclass
class ObjectServer:
    """What the server does; all of it can be changed while it runs.

    Attributes
    ----------
    etag, modified
        Headers; None: not sent.
    honest
        Whether it looks at If-Match, and fails (412).
    ranges
        Whether it knows ranges.
    status
        Answered to everything, if it is not 200.
    faults
        How often each of `FAULTS` befalls a request for bytes.
    spared
        So many requests have no fault.
    hang_first
        The first request for each range is never answered, the second one is.
    until
        Nothing but what is spared is answered before this byte has been asked for.
    latency
        Seconds before each answer.
    wanted, queries
        What If-Match said, and what stood behind the question mark.
    requests
        How many there were, `failed` of them, and `most` at a time.
    """

    data: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    honest: bool = True
    ranges: bool = True
    status: int = 200
    faults: dict[str, float] = dataclasses.field(default_factory=dict)
    spared: int = 1
    hang_first: bool = False
    until: int | None = None
    stop_at: int = 0
    stop_seconds: float = 0.0
    latency: float = 0.0
    requests: int = 0
    failed: int = 0
    now: int = 0
    most: int = 0
    wanted: set[str | None] = dataclasses.field(default_factory=set)
    queries: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(1)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.asked = threading.Event()
        self.seen: set[str] = set()
        self.connections: set[socket.socket] = set()
        self.port = 0
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/folder/object.npy"

    def fault(self, wanted: str) -> str | None:
        """What befalls the next request."""
        with self.lock:
            self.requests += 1
            if self.requests <= self.spared:
                return None
            if self.hang_first and wanted not in self.seen:
                self.seen.add(wanted)
                return "hang"
            drawn = self.random.random()
            for name in FAULTS:
                drawn -= self.faults.get(name, 0.0)
                if drawn < 0:
                    self.failed += 1
                    return name
            return None

    def hold(self, start: int, end: int) -> None:
        """Wait until the byte `until` has been asked for."""
        if self.until is None or self.requests <= self.spared:
            return
        if start <= self.until < end:
            self.asked.set()
        while not self.asked.is_set() and not self.closing.is_set():
            self.asked.wait(0.05)

    def stop_now(self) -> bool:
        """Whether this is the request at which the server stops for a while."""
        with self.lock:
            if not self.stop_at or self.requests < self.stop_at:
                return False
            self.stop_at = 0
        threading.Thread(target=self._restart, daemon=True).start()
        return True

    def close(self) -> None:
        self.closing.set()
        self._end()

    def _listen(self) -> None:
        address = ("127.0.0.1", self.port)
        self._server = http.server.ThreadingHTTPServer(address, _Handler)
        self._server.daemon_threads = True
        self._server.state = self  # type: ignore[attr-defined]
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.daemon = True
        self._thread.start()

    def _end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self.lock:
            connections, self.connections = self.connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _restart(self) -> None:
        self._end()
        if not self.closing.wait(self.stop_seconds):
            self._listen()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for head and body, else Nagle and delayed ACKs make 40 ms of it.
    wbufsize = -1

    @property
    def state(self) -> ObjectServer:
        found: ObjectServer = self.server.state  # type: ignore[attr-defined]
        return found

    def setup(self) -> None:
        super().setup()
        with self.state.lock:
            self.state.connections.add(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError, OSError, ValueError):
            super().finish()
        with self.state.lock:
            self.state.connections.discard(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(200, b"", length=len(self.state.data))

    def do_GET(self) -> None:
        state = self.state
        with state.lock:
            state.now += 1
            state.most = max(state.most, state.now)
        state.closing.wait(state.latency)
        # Before the answer: who has it may ask the next thing at once.
        with state.lock:
            state.now -= 1
        self.get(state)

    def get(self, state: ObjectServer) -> None:
        if self.path.endswith("/change"):
            state.data, state.etag = bytes(len(state.data)), '"two"'
            return self.answer(200, b"")
        state.queries.add(urllib.parse.urlsplit(self.path).query)
        asked = self.headers.get("Range") or ""
        fault = state.fault(asked)
        if state.stop_now():
            return self.cut()
        if fault == "hang":
            state.closing.wait(100)
            return self.cut()
        if state.status != 200 or fault == "error":
            return self.answer(503 if fault else state.status, b"<Error>no</Error>")
        wanted = self.headers.get("If-Match")
        state.wanted.add(wanted)
        weak = (state.etag or "").startswith("W/")
        if state.honest and wanted is not None and (weak or wanted != state.etag):
            return self.answer(412, b"")
        start, end = 0, len(state.data)
        if not asked or not state.ranges:
            return self.answer(200, state.data)
        low, _, high = asked.partition("=")[2].partition("-")
        start, end = int(low), min(int(high) + 1, end)
        state.hold(start, end)
        if start >= len(state.data):
            return self.answer(416, b"")
        if fault == "less":
            end -= max(1, (end - start) // 2)
        body = state.data[start:end]
        head = {"Content-Range": f"bytes {start}-{end - 1}/{len(state.data)}"}
        if fault in ("reset", "short"):
            self.answer(206, body[: len(body) // 2], length=len(body), more=head)
            self.wfile.flush()
            return self.cut(reset=fault == "reset")
        return self.answer(206, body, more=head)

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        length: int | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (("ETag", self.state.etag), ("Last-Modified", self.state.modified)):
            if value is not None:
                self.send_header(name, value)
        for name, text in (more or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def cut(self, *, reset: bool = False) -> None:
        """End the connection; `reset`: so that what is under way is lost."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@contextlib.contextmanager
def object_server(data: bytes, **how: Any) -> Iterator[ObjectServer]:
    """Serve `data` as long as the block lasts."""
    server = ObjectServer(data, **how)
    try:
        yield server
    finally:
        server.close()
