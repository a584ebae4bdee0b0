"""A server of one file that answers each request after a while, as one far away does.

It knows GET and HEAD with a range, and keeps connections open.  The bytes go from the page cache to
the socket (sendfile), so that it takes little of the CPUs that are measured.  ``GET /requests``
tells how many requests there were for the file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

__all__ = ["Address", "serving"]

PIECE = 256 << 10


class Address:
    """Where a server is.

    Attributes
    ----------
    url
        Of the file.
    """

    def __init__(self, port: int, name: str) -> None:
        self.root = f"http://127.0.0.1:{port}/"
        self.name = name
        self.url = self.root + name

    def requests(self) -> int:
        """How many requests for the file there were."""
        with urllib.request.urlopen(self.root + "requests") as answer:
            return int(answer.read())


@contextlib.contextmanager
def serving(path: str, *, latency: float, rate: float = 0.0) -> Iterator[Address]:
    """Serve a file from a process of its own, as long as the block lasts.

    Parameters
    ----------
    latency
        Seconds before each answer.
    rate
        Bytes per second, all connections together; 0: as many as it can.
    """
    server = subprocess.Popen(
        [sys.executable, __file__, path, str(latency), str(rate)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield Address(int(server.stdout.readline()), os.path.basename(path))
    finally:
        server.kill()
        server.communicate()


class _Link:
    """All connections share it: whoever sends waits until what was sent before has gone through."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.lock = threading.Lock()
        self.free = 0.0

    def send(self, size: int) -> None:
        if not self.rate:
            return
        with self.lock:
            now = time.monotonic()
            self.free = max(self.free, now) + size / self.rate
            wait = self.free - now
        if wait > 0.001:
            time.sleep(wait)


class _Server:
    def __init__(self, path: str, latency: float, rate: float) -> None:
        self.file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.file).st_size
        self.latency = latency
        self.link = _Link(rate)
        self.requests = 0

    def serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                got = connection.recv(1 << 16)
                if not got:
                    return
                data += got
            head, _, data = data.partition(b"\r\n\r\n")
            try:
                self.answer(connection, head.decode("latin-1"))
            except (BrokenPipeError, ConnectionResetError):
                return

    def answer(self, connection: socket.socket, head: str) -> None:
        method, path, _ = head.split(" ", 2)
        if path == "/requests":
            text = str(self.requests)
            connection.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
            )
            return
        self.requests += 1
        time.sleep(self.latency)
        start, end, status = 0, self.size, "200 OK"
        for line in head.splitlines():
            name, _, value = line.partition(":")
            if name.lower() == "range":
                low, _, high = value.partition("=")[2].partition("-")
                start, end = int(low), min(int(high or self.size) + 1, self.size)
                status = "206 Partial Content"
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{self.size}\r\n"
            'Accept-Ranges: bytes\r\nETag: "one"\r\n\r\n'.encode()
        )
        while method == "GET" and start < end:
            piece = min(end - start, PIECE)
            self.link.send(piece)
            start += os.sendfile(connection.fileno(), self.file, start, piece)


def _main(path: str, latency: str, rate: str) -> None:
    server = _Server(path, float(latency), float(rate))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    _main(*sys.argv[1:])
