"""A Redis or Valkey server, or a cluster of them, asked through the ``redis`` package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from refault.errors import StoreError, UsageError

__all__ = ["Command", "Server", "address"]

Command: TypeAlias = tuple[str | bytes | int, ...]


def address(url: str) -> str:
    """How messages name the server: its URL without user and password."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


class Server:
    """A connected client.

    Parameters
    ----------
    url
        ``redis://HOST:PORT/DB``, ``rediss://`` or ``unix://``; of a cluster that of any node.
    timeout
        Seconds that one try may take.

    Attributes
    ----------
    clustered
        Whether it is a cluster.

    Raises
    ------
    UsageError
        The package is not installed, the URL is none, or the server may evict.
    StoreError
        The server does not answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise UsageError(
                f"far memory in Redis needs the redis package ({error}); pip install"
                " 'refault[redis]'"
            ) from error
        self._redis = redis
        self._address = address(url)
        # Once more, for connections that were closed while nobody used them.  All other retries
        # are those of the page fault.
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        }
        try:
            self._client: Any = redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise UsageError(f"{self._address}: {error}; give redis://HOST:PORT/DB") from error
        try:
            with self._failures():
                self.clustered = self._client.info("cluster").get("cluster_enabled") == 1
                if self.clustered:
                    self.close()
                    self._client = redis.RedisCluster.from_url(url, **options)
                self._check_eviction()
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands to their nodes, and return their answers in order: one round trip.

        Raises
        ------
        StoreError
            One of them failed.
        """
        with self._failures():
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
        if len(answers) != len(commands):
            raise StoreError(
                f"{self._address}: {len(answers)} answers to {len(commands)} commands; see whether"
                " a proxy stands in between"
            )
        return answers

    def node_of(self, key: str) -> str:
        """Which master a key is on."""
        if not self.clustered:
            return ""
        with self._failures():
            return str(self._client.get_node_from_key(key).name)

    def close(self) -> None:
        """Close all connections."""
        if hasattr(self._client, "disconnect_connection_pools"):
            # A cluster's `close` leaves those to the nodes open.
            self._client.disconnect_connection_pools()
        self._client.close()

    def _check_eviction(self) -> None:
        client = self._client
        if self.clustered:
            servers = [(node.name, node.redis_connection) for node in client.get_primaries()]
        else:
            servers = [(self._address, client)]
        for name, one in servers:
            memory = one.info("memory")
            policy = memory.get("maxmemory_policy", "noeviction")
            if policy.startswith("allkeys") and memory.get("maxmemory", 0):
                raise UsageError(
                    f"{name}: its maxmemory-policy is {policy}, so it throws keys away when it is"
                    " full; CONFIG SET maxmemory-policy noeviction, or use another server"
                )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """What the package raises becomes a `StoreError`."""
        errors = self._redis.exceptions
        try:
            yield
        except (errors.AuthenticationError, errors.NoPermissionError) as error:
            raise StoreError(
                f"{self._address}: {error}; give user and password in the URL", permanent=True
            ) from error
        except errors.OutOfMemoryError as error:
            raise StoreError(
                f"{self._address}: {error}; raise its maxmemory, or delete arrays there"
            ) from error
        except (errors.RedisError, errors.RedisClusterException, OSError) as error:
            raise StoreError(
                f"{self._address}: {type(error).__name__}: {error}; see whether the server runs"
            ) from error
