"""The servers that tests start: they answer, keep their data, and are gone afterwards."""

from __future__ import annotations

import urllib.request

import pytest

from helpers import servers


@pytest.mark.usefixtures("nothing_left")
def test_redis_keeps_its_data_when_it_is_killed() -> None:
    with servers.redis() as server:
        assert server.ask("SET", "key", "value") == b"+OK"
        server.kill()
        assert not server.answers()
        server.start()
        assert server.ask("EXISTS", "key") == b":1"
        server.kill()
        server.lose_data()
        server.start()
        assert server.ask("EXISTS", "key") == b":0"


@pytest.mark.usefixtures("nothing_left")
def test_a_cluster_serves_all_slots() -> None:
    with servers.redis_cluster() as nodes:
        answers = [node.ask("GET", "key") for node in nodes]
        assert answers.count(b"$-1") == 1
        assert all(answer == b"$-1" or answer.startswith(b"-MOVED ") for answer in answers)


@pytest.mark.usefixtures("nothing_left")
def test_nginx_serves_ranges() -> None:
    with servers.nginx() as server:
        (server.root / "numbers").write_bytes(bytes(range(100)))
        request = urllib.request.Request(f"{server.url}/numbers", headers={"Range": "bytes=10-19"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 206
            assert answer.read() == bytes(range(10, 20))


def test_what_is_not_installed_is_skipped_or_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFAULT_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no-such-program.*apt-get install some"):
        servers.program("no-such-program", "some")
    monkeypatch.setenv("REFAULT_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        servers.program("no-such-program", "some")
