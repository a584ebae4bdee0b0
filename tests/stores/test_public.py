"""No message tells what may be secret in a URL."""

from __future__ import annotations

import pytest

from refault.stores.remote import public


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://host/a/b?sig=x&y=z went wrong", "https://host/a/b went wrong"),
        ("GET https://host/a?sig=x, 'https://host/b?sig=y'", "GET https://host/a 'https://host/b'"),
        ("sftp://user:word@host/a", "sftp://host/a"),
        ("https://user:word@host/a?sig=x", "https://host/a"),
        ("s3://bucket/what@is?", "s3://bucket/what@is"),
        ("no URL? none", "no URL? none"),
    ],
)
def test_public(text: str, found: str) -> None:
    assert public(text) == found
