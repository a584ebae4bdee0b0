"""Servers for tests: Redis, one or a cluster of three, and nginx.

Each is a child process of the tests, on free ports of the loopback interface, with its files in
a temporary folder, and is ended by its process id.  `.ci/servers` installs the programs.  Where
one is missing the test is skipped and says so; with REFAULT_REQUIRE_SERVERS=1, as in `.ci/run`,
it fails.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest

__all__ = [
    "HOST",
    "Nginx",
    "RedisServer",
    "free_ports",
    "is_whole",
    "nginx",
    "program",
    "redis",
    "redis_cluster",
    "running",
    "wait_for",
]

S = TypeVar("S", bound="Server")

HOST = "127.0.0.1"
START_SECONDS = 30.0
NODE_TIMEOUT_MS = 10_000
"""How long a busy machine may keep a node of a cluster from answering the others."""


class Server:
    """A program that serves a port.

    Parameters
    ----------
    command
        Program and arguments.
    port
        Where it answers.
    log
        Where its output goes.
    """

    def __init__(self, command: Sequence[str], port: int, log: pathlib.Path) -> None:
        self.command = list(command)
        self.port = port
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        wait_for(self.answers, f"{self.command[0]} on port {self.port}", self._complain)

    def answers(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        """Its process id; 0: it does not run."""
        return 0 if self._process is None else self._process.pid

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open, nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power failure would."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def be_missed(self) -> None:
        """Do not run until somebody has tried to connect, in vain."""
        self.kill()
        with socket.create_server((HOST, self.port)) as instead:
            instead.settimeout(START_SECONDS)
            instead.accept()[0].close()

    def stop(self) -> None:
        """End it, if it runs; nothing is waited for to be saved."""
        if self._process is not None:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.command[0]} does not run"
        return self._process

    def _complain(self) -> str | None:
        if self._running().poll() is not None:
            return f"ended with {self._running().returncode}: {self.log.read_text()[-2000:]}"
        return None


class RedisServer(Server):
    """A Redis server that keeps its data in an append-only file.

    Before it answers a command it has written it to the file.  That the kernel may not have
    written it to the disk makes no difference to a process that is killed.

    Parameters
    ----------
    folder
        For its files.
    options
        Of ``redis-server``, beside those that all tests need.
    """

    def __init__(self, folder: pathlib.Path, options: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        port, self.bus_port = free_ports(2)
        command = [
            program("redis-server", "redis-server"),
            *("--bind", HOST, "--port", str(port), "--cluster-port", str(self.bus_port)),
            *("--dir", str(folder), "--save", "", "--appendonly", "yes"),
            *("--appendfsync", "no", "--daemonize", "no"),
            *options,
        ]
        super().__init__(command, port, folder / "log")

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def answers(self) -> bool:
        """Whether it has read its file, and answers."""
        return self.ask("PING").startswith((b"+PONG", b"-NOAUTH"))

    def ask(self, *words: str) -> bytes:
        """The first line that it answers to a command; empty if it does not."""
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                with connection.makefile("rb") as answers:
                    return answers.readline().rstrip()
        except OSError:
            return b""

    def lose_data(self) -> None:
        """Remove the files of a server that does not run."""
        assert self._process is None
        shutil.rmtree(self.folder / "appendonlydir")


class Nginx(Server):
    """nginx, serving the files of a folder.

    Attributes
    ----------
    root
        The folder.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "files"
        self.root.mkdir()
        (port,) = free_ports(1)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"pid {folder}/pid;\nerror_log stderr;\ndaemon off;\nmaster_process off;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}"
            f"server {{ listen {HOST}:{port}; root {self.root}; }}\n}}\n"
        )
        command = [program("nginx", "nginx-light"), "-p", str(folder), "-c", str(configuration)]
        super().__init__([*command, "-e", "stderr"], port, folder / "log")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def program(name: str, package: str) -> str:
    """The path of an installed program; without it the test is skipped, or fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is not None:
        return found
    reason = f"{name} is not installed: apt-get install {package}, or run .ci/servers"
    if os.environ.get("REFAULT_REQUIRE_SERVERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(
    done: Callable[[], bool], what: str, complain: Callable[[], str | None] = lambda: None
) -> None:
    """Wait until `done`; fail when `complain` says something, or after `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while not done():
        problem = complain()
        if problem is not None or time.monotonic() > deadline:
            pytest.fail(f"{what}: {problem or 'does not answer'}", pytrace=False)
        time.sleep(0.02)


@contextlib.contextmanager
def running(make: Callable[[pathlib.Path], S], prefix: str) -> Iterator[S]:
    """A server in a folder of its own, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        server = make(pathlib.Path(name))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def redis(options: Sequence[str] = ()) -> Iterator[RedisServer]:
    """A Redis server for as long as the block lasts."""
    with running(lambda folder: RedisServer(folder, options), "redis-") as server:
        yield server


@contextlib.contextmanager
def redis_cluster(nodes: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster of masters without replicas, for as long as the block lasts."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
    with tempfile.TemporaryDirectory(prefix="redis-") as name:
        servers = [RedisServer(pathlib.Path(name) / str(i), options) for i in range(nodes)]
        try:
            for server in servers:
                server.start()
            _join(servers)
            yield servers
        finally:
            for server in servers:
                server.stop()


def _join(servers: list[RedisServer]) -> None:
    slots = 16384
    first = servers[0]
    for number, server in enumerate(servers):
        low = slots * number // len(servers)
        high = slots * (number + 1) // len(servers) - 1
        for command in (
            ("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)),
            ("CLUSTER", "ADDSLOTSRANGE", str(low), str(high)),
            ("CLUSTER", "MEET", HOST, str(first.port), str(first.bus_port)),
        ):
            if command[1] != "MEET" or server is not first:
                answer = server.ask(*command)
                assert answer == b"+OK", (command, answer)
    for server in servers:
        wait_for(functools.partial(is_whole, server, len(servers)), "the cluster")


def is_whole(server: RedisServer, nodes: int = 0) -> bool:
    """Whether all slots are served, as a node sees it, and it knows so many nodes."""
    with socket.create_connection((HOST, server.port), timeout=5) as connection:
        connection.sendall(b"CLUSTER INFO\r\n")
        with connection.makefile("rb") as answers:
            length = int(answers.readline()[1:])
            text = answers.read(length).decode()
    fields = dict(line.split(":", 1) for line in text.split())
    return fields["cluster_state"] == "ok" and int(fields["cluster_known_nodes"]) >= nodes


@contextlib.contextmanager
def nginx() -> Iterator[Nginx]:
    """An nginx for as long as the block lasts."""
    with running(Nginx, "nginx-") as server:
        yield server
