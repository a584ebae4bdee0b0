"""`refault demo`: it is right, it would notice if it were not, and it cleans up."""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd
from refault import cli
from refault.cli.demo.report import ROWS, Result, problems, show
from refault.cli.demo.store import BLOCK, FailingStore, content
from refault.client.statistics import RegionStatistics

TITLES = ["64 GiB of zeros", ".npy in place", "failing store"]

RUN = """
    import sys
    from refault.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))
"""

SMALL = """
    import dataclasses, os, signal, sys
    from refault.cli import demo, main
    from refault.cli.demo import in_place, plan, scattered, witness

    plan.QUICK = dataclasses.replace(
        plan.QUICK, zeros_resident=4 << 20, least_places=256, most_places=256,
        least_stretch=16 << 20, most_stretch=16 << 20, file_bytes=16 << 20, file_resident=4 << 20,
    )

    def before(module, name, call):
        wrapped = getattr(module, name)

        def wrapper(*args):
            call(*args)
            return wrapped(*args)

        setattr(module, name, wrapper)

    {sabotage}
    sys.exit(main(["demo", "--quick", "--directory", sys.argv[1]]))
"""

pytestmark = pytest.mark.timeout(120)


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
def test_table(tmp_path: pathlib.Path) -> None:
    done = run_child(
        RUN, args=["--quick", "--directory", str(tmp_path)], timeout=60, env={"COLUMNS": "100"}
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("An array of 64 GiB, on a machine with ")
    assert lines[-1].startswith("every byte right: ")
    for name, _ in ROWS:
        assert sum(line.startswith(name + "  ") for line in lines) == 1, name
    header = next(line for line in lines if TITLES[0] in line)
    assert all(title in header for title in TITLES)
    expected, *warnings = done.stderr.splitlines()
    assert "expected" in expected
    assert warnings
    assert all("on purpose" in warning for warning in warnings)
    assert not list(tmp_path.iterdir())


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("user", [None, 65534], ids=["as-we-are", "unprivileged"])
def test_json(user: int | None) -> None:
    done = run_child(RUN, args=["--quick", "--json"], timeout=60, user=user)
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["problems"] == []
    parts = found["parts"]
    assert [part["title"] for part in parts] == TITLES
    for part in parts:
        counted = part["statistics"]
        assert part["wrong"] == 0 < part["checked"]
        assert 0 < part["peak_seen"] <= counted["budget"] + counted["page_size"]
        assert counted["faults"] > 0 < counted["evictions"]
    zeros, file, failing = parts
    assert zeros["nbytes"] == 64 << 30
    assert zeros["statistics"]["swap_reads"] > 0
    assert file["nbytes"] > file["statistics"]["budget"]
    assert file["statistics"]["bytes_written"] >= file["nbytes"]
    assert failing["statistics"]["retries_store_error"] > 0
    assert failing["statistics"]["attempts"] > failing["statistics"]["faults"]


SABOTAGE = {
    "word of the array": (
        """
    def change(places, written, tally):
        places[written[5], 7] ^= 1
    before(scattered, "check_places", change)
    """,
        "64 GiB of zeros: 1 of ",
    ),
    "place that is not written": (
        """
    def change(places, written, tally):
        places[written[0] ^ 1, 1000] = 1 << 31
    before(scattered, "check_zeros", change)
    """,
        "64 GiB of zeros: 1 of ",
    ),
    "byte of the file": (
        """
    def change(path, count, tally):
        with open(path, "r+b") as file:
            file.seek(1_000_000)
            byte = file.read(1)[0]
            file.seek(1_000_000)
            file.write(bytes([byte ^ 0x80]))
    before(in_place, "check_file", change)
    """,
        ".npy in place: 1 of ",
    ),
    "memory": (
        "witness.Witness.resident = lambda self: 1 << 30",
        "64 GiB of zeros: 1 GiB were in memory, and 4 MiB are allowed",
    ),
    "blind witness": (
        "witness.Witness.resident = lambda self: 0",
        "nobody saw any memory being used",
    ),
}


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("what", SABOTAGE)
def test_sabotage_is_noticed(what: str, tmp_path: pathlib.Path) -> None:
    code, message = SABOTAGE[what]
    done = run_child(SMALL.format(sabotage=code), args=[str(tmp_path)], timeout=60, expect=1)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("WRONG: ")
    assert message in last
    assert not list(tmp_path.iterdir())


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "begin", ["reading", "writing in order", "making", "changing", "reading the"]
)
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_told_to_end(begin: str, number: str, status: int, tmp_path: pathlib.Path) -> None:
    code = f"""
    def progress(text):
        if text.startswith({begin!r}):
            os.kill(os.getpid(), signal.{number})
    demo._progress = progress
    """
    run_child(SMALL.format(sabotage=code), args=[str(tmp_path)], timeout=60, expect=status)
    assert not list(tmp_path.iterdir())


def test_kernel_refuses() -> None:
    code = """
        import sys
        from refault.cli import main
        from refault.errors import KernelError
        from refault.machine import uffd

        def refuse(*args):
            raise KernelError(1, "the kernel gives us no userfaultfd; run: refault doctor")

        uffd.open_userfaultfd = refuse
        sys.exit(main(["demo", "--quick"]))
    """
    done = run_child(code, timeout=30, expect=2)
    assert "run: refault doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_space(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    assert cli.main(["demo", "--directory", str(tmp_path)]) == 2
    assert capsys.readouterr() == (
        "",
        f"refault: the demo needs 576 MiB of disk for half a minute, and {tmp_path} has 5 MiB free;"
        " name another place with --directory, or use --quick\n",
    )


def test_no_directory(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--directory", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "No such file or directory; name a directory" in err


# --- the table ---------------------------------------------------------------------------------


def results() -> list[Result]:
    statistics = RegionStatistics(
        faults=1000, attempts=1500, max_attempts=4, budget=1 << 20, page_size=65536
    )
    return [
        Result(
            title=title,
            nbytes=1 << 30,
            statistics=statistics,
            peak_seen=1 << 20,
            write_rate=None,
            read_rate=2.5e9,
            checked=123456,
            wrong=0,
        )
        for title in TITLES
    ]


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
@pytest.mark.parametrize("width", [100, 60, 10])
def test_show(
    rich: bool, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    show(results(), width)
    lines = capsys.readouterr().out.splitlines()
    expected = {
        "faults": "1,000",
        "attempts per fault": "1.500, most 4",
        "read in order": "2.50 GB/s",
    }
    for name, value in expected.items():
        found = [line for line in lines if line.startswith(name)]
        assert len(found) == (1 if width == 100 else 3)
        assert sum(line.count(value) for line in found) == 3
    if width == 100:
        assert max(map(len, lines)) <= width


def test_a_good_result_has_no_problems() -> None:
    assert [problems(result) for result in results()] == [[], [], []]


# --- the store that fails ------------------------------------------------------------------------


def test_store_fails_a_few_times() -> None:
    store = FailingStore(2000 * BLOCK)
    buffer = bytearray(BLOCK)
    for block, failures in [(0, 0), (200, 1), (600, 2), (1000, 3), (1400, 1)]:
        for _ in range(failures):
            with pytest.raises(OSError, match=f"block {block} .*on purpose"):
                store.read_into(block * BLOCK, memoryview(buffer))
        store.read_into(block * BLOCK, memoryview(buffer))
        assert buffer == content(block)


def test_store_fills_any_range() -> None:
    whole = b"".join(
        hashlib.shake_128(block.to_bytes(8, "little")).digest(BLOCK) for block in range(4)
    )
    store = FailingStore(len(whole))
    for start, end in [(0, 1), (BLOCK - 1, BLOCK + 1), (5, 3 * BLOCK + 7), (0, 4 * BLOCK)]:
        buffer = bytearray(end - start)
        store.read_into(start, memoryview(buffer))
        assert buffer == whole[start:end]
