"""Fixtures of all tests, and what several processes of tests need; the helpers are in `helpers`."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.leftovers import leftovers
from helpers.processes import become_subreaper
from helpers.s3_server import S3, s3_server


def pytest_configure(config: pytest.Config) -> None:
    become_subreaper()
    if hasattr(config, "workerinput"):
        os.environ["TMPDIR"] = tempfile.tempdir = config.workerinput["folder"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist a temporary folder.

    What others make meanwhile is then not what a test of its leaves behind.
    """
    folder = tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True)
    node.config.add_cleanup(folder.cleanup)
    # Some tests run a child as another user.
    pathlib.Path(folder.name).chmod(0o1777)
    node.workerinput["folder"] = folder.name


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        from kernel.scenarios import table

        session.config.workeroutput["scenarios"] = table.plain_results()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has found about the kernel."""
    from kernel.scenarios import table

    # A worker that died has no output.
    table.take_results(getattr(node, "workeroutput", {}).get("scenarios", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from kernel.scenarios import table

    if len(table.RESULTS) < 10:  # a few were picked: their own lines are enough
        return
    terminalreporter.section("what userfaultfd does on this kernel", sep="-")
    for numbers, title, kinds, result in table.rows():
        terminalreporter.line(f"{numbers:>10}  {title}\n            {kinds}: {result or 'not run'}")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no process, memfd, mapping, temporary file or descriptor behind."""
    with leftovers():
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """S3 with a bucket; started once."""
    with s3_server() as server:
        yield server
