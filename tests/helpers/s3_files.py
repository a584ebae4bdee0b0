"""S3 as far as reading and replacing objects goes, for large ones: its bytes are files of a folder.

moto, which the other tests use, copies a whole object for each range that is read of it.  Here they
go from the page cache to the socket.  Signatures are not looked at.

It is a program of its own, which can be killed and started again (`helpers.servers.Server`).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from helpers import servers

__all__ = ["S3Files", "s3_files"]

MARK = "x-amz-meta-"
PIECE = 1 << 20


class S3Files(servers.Server):
    """A server with one bucket, ``bucket``.

    Attributes
    ----------
    root
        The folder of its objects: ``root/key`` is ``s3://bucket/key``.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "bucket"
        self.root.mkdir()
        (port,) = servers.free_ports(1)
        command = [sys.executable, __file__, str(folder), str(port)]
        super().__init__(command, port, folder / "log")

    @property
    def options(self) -> dict[str, str]:
        """What ``storage_options`` must say."""
        return {
            "endpoint": f"http://{servers.HOST}:{self.port}",
            "region": "us-east-1",
            "access_key_id": "key",
            "secret_access_key": "secret",
        }

    def counts(self) -> dict[str, int]:
        """How many ``requests`` there were since it was started, and ``bytes`` sent."""
        with urllib.request.urlopen(f"http://{servers.HOST}:{self.port}/counts") as answer:
            found: dict[str, int] = json.load(answer)
            return found


@contextlib.contextmanager
def s3_files() -> Iterator[S3Files]:
    """Run the server as long as the block lasts."""
    with servers.running(S3Files, "s3-") as server:
        yield server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    root = ""
    lock = threading.Lock()
    requests = sent = 0

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    @property
    def object(self) -> str:
        return self.root + urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/counts":
            counts = {"requests": _Handler.requests, "bytes": _Handler.sent}
            return self.answer(200, json.dumps(counts).encode())
        try:
            with open(self.object, "rb") as file:
                self.send(file.fileno())
        except FileNotFoundError:
            self.answer(404)

    def send(self, file: int) -> None:
        """Answer with a file, or the part of it that is asked for."""
        size, etag = os.fstat(file).st_size, _etag(file)
        if self.headers.get("If-Match") not in (None, "*", etag):
            return self.answer(412)
        start, end, status = 0, size, 200
        more = {"ETag": etag, "Last-Modified": self.date_time_string(0), **_marks(self.object)}
        asked = self.headers.get("Range")
        if asked is not None:
            low, _, high = asked.partition("=")[2].partition("-")
            start, end, status = int(low), min(int(high) + 1, size), 206
            if start >= size:
                return self.answer(416)
            more["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        wanted = self.command == "GET"
        with _Handler.lock:
            _Handler.requests += 1
            _Handler.sent += (end - start) * wanted
        self.answer(status, more=more, length=end - start)
        self.wfile.flush()
        while wanted and start < end:
            sent = os.sendfile(self.connection.fileno(), file, start, min(end - start, PIECE))
            if not sent:
                self.close_connection = True
                return None
            start += sent

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        marks = {name: text for name, text in self.headers.items() if name.lower().startswith(MARK)}
        with tempfile.NamedTemporaryFile(dir=self.root, delete=False) as file:
            while left:
                data = self.rfile.read(min(left, PIECE))
                if not data:
                    os.unlink(file.name)
                    self.close_connection = True
                    return
                file.write(data)
                left -= len(data)
            file.flush()
            etag = _etag(file.fileno())
        with _Handler.lock:
            wanted = self.headers.get("If-Match")
            if wanted is not None and wanted != _etag_of(self.object):
                os.unlink(file.name)
                return self.answer(412)
            os.rename(file.name, self.object)
            pathlib.Path(f"{self.object}.marks").write_text(json.dumps(marks))
        self.answer(200, more={"ETag": etag})

    def answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        more: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, text in (more or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(fd: int) -> str:
    """Of one file: no two have the same inode at the same time."""
    found = os.fstat(fd)
    return f'"{found.st_ino:x}-{found.st_mtime_ns:x}"'


def _etag_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return _etag(file.fileno())
    except OSError:
        return ""


def _marks(path: str) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(pathlib.Path(f"{path}.marks").read_text())
        return found
    except OSError:
        return {}


def _main(folder: str, port: str) -> None:
    _Handler.root = folder
    server = http.server.ThreadingHTTPServer((servers.HOST, int(port)), _Handler)
    server.request_queue_size = 128
    server.serve_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
