"""A bucket on this machine: moto's S3 behind a door that can be shut.

It runs in a thread of the test's process, so tests talk to it from there or from children.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

__all__ = ["Bucket"]

REFUSAL = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""


class Bucket:
    """An empty bucket; a context manager.

    Attributes
    ----------
    options
        For `refault.Checkpoints`.
    url
        Of a place in the bucket.
    """

    url = "s3://bucket/checkpoints"

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self._forbidden = False
        self._port = 0
        self._start()
        self.options: dict[str, Any] = {
            "endpoint_url": f"http://127.0.0.1:{self._port}",
            "allow_http": True,
            "force_path_style": True,
            "region": "us-east-1",
            "access_key_id": "testing",
            "secret_access_key": "testing",
        }
        import urllib.request

        request = urllib.request.Request(f"{self.options['endpoint_url']}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def forbid(self, forbidden: bool = True) -> None:
        """Answer every request with 403, or no more."""
        self._forbidden = forbidden

    def shut(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def open(self) -> None:
        """Listen again, with what is in the bucket."""
        self._start()

    def close(self) -> None:
        """Forget the bucket and all that is in it."""
        self.shut()
        from moto.s3.models import s3_backends

        s3_backends.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *args: object) -> None:
                pass

        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=Quiet
        )
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._forbidden:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSAL]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
