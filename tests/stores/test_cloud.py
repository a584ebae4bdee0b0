"""Objects through obstore: what is read is right, and of one version; what fails says so."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from typing import Any

import obstore.store
import pytest

from helpers.child_tools import content
from helpers.object_server import FAULTS, ObjectServer, object_server
from helpers.s3_server import S3
from refault.errors import StoreError, UsageError
from refault.stores import Obstore, Policy
from refault.stores.clients import Recipe, store_from_url
from refault.stores.cloud import object_name
from refault.stores.objects import ObjectStore, dump_object, load_object

SIZE = 300_000
QUICK = Policy(timeout=0.5)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with object_server(content(0, SIZE)) as server:
        yield server


def read(store: Any, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_any_range_is_read(server: ObjectServer) -> None:
    store = Obstore.from_url(server.url)
    assert (store.size, store.name) == (SIZE, server.url)
    draw = random.Random(2)
    for _ in range(30):
        start = draw.randrange(SIZE)
        end = draw.randint(start, SIZE)
        assert read(store, start, end - start) == content(start, end - start)
    assert read(store, 0, SIZE) == content(0, SIZE)
    assert read(store, SIZE - 1, 1) == content(SIZE - 1, 1)


@pytest.mark.parametrize(("offset", "length"), [(SIZE - 1, 2), (SIZE, 1), (-1, 1), (0, SIZE + 1)])
def test_nothing_is_read_beyond_the_end(server: ObjectServer, offset: int, length: int) -> None:
    with pytest.raises(StoreError, match=f"{server.url}: .*ends at {SIZE}") as caught:
        read(Obstore.from_url(server.url), offset, length)
    assert caught.value.permanent


def test_opening_takes_one_request_and_the_first_bytes_none(server: ObjectServer) -> None:
    store = pickle.loads(pickle.dumps(Obstore.from_url(server.url)))
    assert read(store, 0, 65_536) == content(0, 65_536)
    assert server.requests == 1
    assert read(store, 1, 65_536) == content(1, 65_536)
    assert server.requests == 2


def test_it_travels_to_the_pager(server: ObjectServer) -> None:
    store = ObjectStore(load_object(dump_object(Obstore.from_url(server.url)), []))
    assert (store.parallel, store.read_bytes) == (32, 2 << 20)  # type: ignore[attr-defined]
    assert b"".join(store.fetch(100_000, 1000)) == content(100_000, 1000)
    server.status = 404
    with pytest.raises(StoreError) as caught:
        store.fetch(100_000, 1000)
    assert str(caught.value).count(server.url) == 1
    assert caught.value.permanent


def test_an_empty_object_is_empty() -> None:
    with object_server(b"") as server:
        assert Obstore.from_url(server.url).size == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("error", "HTTP 503 Service Unavailable"),
        ("hang", "no answer in time"),
        ("reset", "the connection broke off"),
        ("short", "the connection broke off"),
        ("less", "Requested 100000..100010, got 100000..100005"),
    ],
)
def test_what_may_pass_is_not_permanent(server: ObjectServer, fault: str, says: str) -> None:
    assert fault in FAULTS
    store = Obstore.from_url(server.url, policy=QUICK)
    server.faults = {fault: 1.0}
    with pytest.raises(StoreError) as caught:
        read(store, 100_000, 10)
    assert str(caught.value).startswith(f"{server.url}: cannot read 10 bytes at offset 100000: ")
    assert says in str(caught.value)
    assert not caught.value.permanent
    server.faults = {}
    assert read(store, 100_000, 10) == content(100_000, 10)


def test_no_connection_is_not_permanent(server: ObjectServer) -> None:
    store = Obstore.from_url(server.url)
    server.close()
    with pytest.raises(StoreError, match="no connection to the server") as caught:
        read(store, 100_000, 10)
    assert not caught.value.permanent


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "give credentials"),
        (403, "see what these credentials may read"),
        (404, "check the name"),
        (410, "deleted"),
        (412, "has changed since it was opened"),
    ],
)
def test_what_is_for_ever_is_permanent(server: ObjectServer, status: int, says: str) -> None:
    store = Obstore.from_url(server.url)
    server.status = status
    with pytest.raises(StoreError, match=says) as caught:
        read(store, 100_000, 10)
    assert caught.value.permanent
    before = server.requests
    with pytest.raises(StoreError, match=f"cannot open it: HTTP {status}") as caught:
        Obstore.from_url(server.url)
    assert caught.value.permanent
    assert server.requests == before + 1


def test_to_open_is_tried_a_few_times(server: ObjectServer) -> None:
    server.faults, server.spared = {"error": 1.0}, 0
    with pytest.raises(StoreError, match="cannot open it: HTTP 503") as caught:
        Obstore.from_url(server.url)
    assert not caught.value.permanent
    assert server.requests == 4
    server.faults = {"error": 0.5}
    assert Obstore.from_url(server.url).size == SIZE


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        {"etag": '"two"'},
        {"etag": 'W/"two"'},
        {"etag": None, "modified": "Tue, 01 Jan 2030 00:00:01 GMT"},
    ],
)
def test_two_versions_are_never_mixed(
    server: ObjectServer, honest: bool, headers: dict[str, str | None]
) -> None:
    server.honest = honest
    if (headers["etag"] or "").startswith("W/"):
        server.etag = 'W/"one"'
    elif headers["etag"] is None:
        server.etag, server.modified = None, "Tue, 01 Jan 2030 00:00:00 GMT"
    store = Obstore.from_url(server.url)
    assert read(store, 100_000, 10) == content(100_000, 10)
    for name, value in headers.items():
        setattr(server, name, value)
    server.data = bytes(SIZE)
    with pytest.raises(StoreError, match="has changed since it was opened") as caught:
        read(store, 100_000, 10)
    assert caught.value.permanent


def test_every_request_names_the_version(server: ObjectServer) -> None:
    store = Obstore.from_url(server.url)
    assert store.version == '"one"'
    server.wanted.clear()
    read(store, 100_000, 10)
    assert server.wanted == {'"one"'}


def test_a_server_without_ranges_is_refused(server: ObjectServer) -> None:
    server.ranges = False
    with pytest.raises(StoreError, match="range requests") as caught:
        Obstore.from_url(server.url)
    assert caught.value.permanent


def test_a_presigned_url_is_used_and_not_told(server: ObjectServer) -> None:
    store = Obstore.from_url(server.url + "?X-Signature=Geheim%2F1&b=2")
    assert read(store, 100_000, 10) == content(100_000, 10)
    assert server.queries == {"X-Signature=Geheim%2F1&b=2"}
    texts = [repr(store), store.name]
    for status, faults in ((200, {"error": 1.0}), (403, {}), (200, {"less": 1.0})):
        server.status, server.faults = status, faults
        with pytest.raises(StoreError) as caught:
            read(store, 100_000, 10)
        texts.append(str(caught.value))
    assert all("Geheim" not in text and "X-Signature" not in text for text in texts)


def test_credentials_are_not_told() -> None:
    options = {
        "endpoint": "http://127.0.0.1:9",
        "region": "us-east-1",
        "access_key_id": "AKGEHEIM",
        "secret_access_key": "GEHEIM",
    }
    with pytest.raises(StoreError, match=r"s3://bucket/a/b\.npy: cannot open it") as caught:
        Obstore.from_url("s3://bucket/a/b.npy", **options)
    assert "GEHEIM" not in str(caught.value)
    with pytest.raises(UsageError, match="does not take these storage_options") as refused:
        Obstore.from_url("s3://bucket/a/b.npy", **options, nonsense=1)
    assert "GEHEIM" not in str(refused.value)


def test_a_hedged_read_does_not_wait_for_a_request_that_hangs(server: ObjectServer) -> None:
    store = Obstore.from_url(server.url, policy=Policy(timeout=60, hedge_after=0.05))
    server.hang_first = True
    for start in range(100_000, 100_010):
        assert read(store, start, 10) == content(start, 10)


def test_a_url_names_an_object() -> None:
    for url in ("s3://bucket", "s3://bucket/", "http://127.0.0.1:1/"):
        with pytest.raises(UsageError, match="names no object"):
            Obstore.from_url(url)


def test_stores_of_this_process_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="MemoryStore cannot be read by another process"):
        Obstore(obstore.store.MemoryStore(), "x")
    with pytest.raises(UsageError, match="open the file by its path"):
        Obstore(obstore.store.LocalStore(tmp_path), "x")


def test_a_policy_makes_sense() -> None:
    for wrong in (
        {"timeout": 0},
        {"timeout": float("nan")},
        {"parallel": 0},
        {"read_bytes": 100},
        {"read_bytes": 4 << 20},
        {"hedge_after": 0},
        {"hedge_after": 30},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Policy(**wrong)  # type: ignore[arg-type]


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install 'refault\[objects\]'"):
        Obstore.from_url("s3://bucket/x")


@pytest.mark.parametrize(
    ("url", "kind", "path", "name"),
    [
        ("s3://bucket/a b/c?d#e%20.npy", "S3Store", "a b/c?d#e%20.npy", None),
        ("s3a://bucket/x.npy", "S3Store", "x.npy", "s3://bucket/x.npy"),
        ("gs://bucket/a/x.npy", "GCSStore", "a/x.npy", None),
        ("az://container/a/x.npy", "AzureStore", "a/x.npy", None),
        (
            "abfs://container@account.dfs.core.windows.net/a/x.npy",
            "AzureStore",
            "x.npy",
            "az://container/a/x.npy",
        ),
        (
            "https://user:word@host/a%20b/x.npy?s=1",
            "HTTPStore",
            "x.npy",
            "https://host/a%20b/x.npy",
        ),
    ],
)
def test_what_a_url_means(url: str, kind: str, path: str, name: str | None) -> None:
    options: dict[str, Any] = {}
    if kind != "HTTPStore":
        options = {"skip_signature": True}
    if url.startswith("az:"):
        options["account_name"] = "account"
    store, found = store_from_url(url, options)
    assert (type(store).__name__, found) == (kind, path)
    assert object_name(store, found) == (name or url)
    assert type(Recipe.of(store).make(5)) is type(store)


def test_a_key_may_have_any_character(s3: S3) -> None:
    url = s3.put("a b/c?d#e ü.npy", b"hello")
    assert read(Obstore.from_url(url, **s3.options), 0, 5) == b"hello"


def test_an_absent_object_is_permanent(s3: S3) -> None:
    with pytest.raises(StoreError, match="check the name, and the bucket") as caught:
        Obstore.from_url("s3://bucket/absent.npy", **s3.options)
    assert caught.value.permanent
