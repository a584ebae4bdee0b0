"""`leftovers` finds each kind of thing that may be left behind."""

from __future__ import annotations

import mmap
import os
import pathlib
import subprocess
import tempfile

import pytest

from helpers.leftovers import leftovers


def test_nothing() -> None:
    with leftovers():
        with open(os.devnull):
            pass


def test_descriptor() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"descriptors: \d+ -> /dev/null"):
        with leftovers(0):
            fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)


def test_memfd() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"memfds: .*/memfd:refault-x"):
        with leftovers(0):
            fd = os.memfd_create("refault-x")
    os.close(fd)


def test_mapping_of_a_closed_memfd() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"mappings: .*memfd:refault-x"):
        with leftovers(0):
            fd = os.memfd_create("refault-x")
            os.ftruncate(fd, 4096)
            memory = mmap.mmap(fd, 4096)
            os.close(fd)
    memory.close()


def test_file(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=r"files: .*/refault-swap"):
        with leftovers(0):
            (tmp_path / "refault-swap").touch()
            (tmp_path / "of-somebody-else").touch()


def test_process_is_waited_for() -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        with pytest.raises(pytest.fail.Exception, match=r"processes: \d+ sleep"):
            with leftovers(0):
                late = subprocess.Popen(["sleep", "100"])
        late.kill()
        late.wait()
        child.kill()


def test_failure_of_the_block_is_not_hidden() -> None:
    fds = []
    with pytest.raises(ZeroDivisionError):
        with leftovers(0):
            fds.append(os.open(os.devnull, os.O_RDONLY))
            raise ZeroDivisionError
    os.close(fds[0])
