"""S3 on this machine: moto's server, in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

__all__ = ["S3", "s3_server"]

PROGRAM = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True)
class S3:
    """A server with one bucket, ``bucket``."""

    endpoint: str

    @property
    def options(self) -> dict[str, str]:
        """What ``storage_options`` must say."""
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": "key",
            "secret_access_key": "secret",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables of the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def put(self, key: str, data: bytes, **attributes: str) -> str:
        """Put an object; its URL."""
        import obstore

        obstore.put(self.store(), key, data, attributes=attributes)
        return f"s3://bucket/{key}"

    def get(self, key: str) -> bytes:
        """All of an object."""
        import obstore

        return bytes(obstore.get(self.store(), key).bytes())

    def store(self) -> Any:
        """The bucket."""
        from obstore.store import S3Store

        options: Any = self.options
        return S3Store("bucket", client_options={"allow_http": True}, **options)


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """Run the server as long as the block lasts."""
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        bucket = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        yield S3(endpoint)
    finally:
        server.kill()
        server.communicate()
