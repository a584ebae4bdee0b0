"""Pages a store in a child process, and compares every byte; for `StoreTests`.

A thread that touches a page holds the GIL until the page is there, and no timeout of
its own process can end that.  So it is a child, and `check` kills it when its time
is up.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refault.errors import KernelError
from refault.machine.uffd import open_userfaultfd
from refault.stores.objects import dump_object, import_path, load_object

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["check"]

STEP = 10_000
PROGRAM = f"import sys; from {__name__} import main; main(sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Job:
    """What the child shall do; `source` is a path or a pickled store."""

    source: str | bytes
    sys_path: list[str]
    content: bytes
    writable: bool
    resident: int
    page_size: int
    seconds: float


def check(
    source: Any,
    content: bytes,
    folder: Path,
    *,
    writable: bool,
    resident: int,
    page_size: int,
    seconds: float,
) -> bytes:
    """Have a child open an array, read all of it in order and at random, and change it.

    Parameters
    ----------
    source
        A store or a path.
    content
        What it holds.
    folder
        For a file.
    writable
        Whether the array is changed and flushed.
    resident, page_size
        Of the array.
    seconds
        When they are over, the child is killed.

    Returns
    -------
    bytes
        What the store must hold now.

    Raises
    ------
    AssertionError
        A byte is wrong, the child died, or its time was up.
    """
    try:
        os.close(open_userfaultfd().fd)
    except KernelError as error:
        import pytest

        pytest.skip(f"nothing can be paged here: {error}")
    job = Job(
        source if isinstance(source, str) else dump_object(source),
        import_path(),
        content,
        writable,
        resident,
        page_size,
        seconds,
    )
    path = folder / "job"
    path.write_bytes(pickle.dumps(job))
    # A file, not a pipe: a pager that outlives the child must not keep us waiting.
    with tempfile.TemporaryFile("w+") as file:
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", PROGRAM, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            child.kill()
            status = child.wait()
        file.seek(0)
        output = file.read()
    if status:
        raise AssertionError(
            f"paging: the child ended with {status} (-9: not done in {seconds} s)\n{output}"
        )
    right = bytearray(content)
    for start, data in _changes(len(content)) if writable else ():
        right[start : start + len(data)] = data
    return bytes(right)


def main(path: str) -> None:
    """Do a job."""
    job: Job = pickle.loads(Path(path).read_bytes())
    faulthandler.dump_traceback_later(job.seconds * 0.8)
    sys.path += [entry for entry in job.sys_path if entry not in sys.path]
    import numpy as np

    right = np.frombuffer(bytearray(job.content), np.uint8)
    _compare(job, "r", right)
    if job.writable:
        _compare(job, "r+", right)


def _compare(job: Job, mode: str, right: npt.NDArray[np.uint8]) -> None:
    import numpy as np

    import refault

    source = load_object(job.source, job.sys_path) if isinstance(job.source, bytes) else job.source
    array = refault.open(
        source,
        mode,
        resident=job.resident,
        page_size=job.page_size,
        # Who fails for ever says so on stderr before our own time is up.
        deadline=job.seconds / 6,
    )
    region = refault.region(array)
    found = _as_bytes(array)
    if len(found) != len(right):
        raise AssertionError(f"the array has {len(found)} bytes instead of {len(right)}")
    places = list(range(0, len(right), STEP))
    _same(found, right, places, "in order")
    random.Random(1).shuffle(places)
    _same(found, right, places, "at random")
    if mode == "r+":
        for start, data in _changes(len(right)):
            part = slice(start, start + len(data))
            found[part] = right[part] = np.frombuffer(data, np.uint8)
        _same(found, right, places, "after changes")
        region.flush()
        _same(found, right, places, "after a flush")
    seen = region.statistics()
    if seen.peak_resident > job.resident:
        raise AssertionError(f"{seen.peak_resident} bytes resident, {job.resident} allowed")
    del array, found
    region.close()


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of an array, as they lie in memory; the same memory."""
    import numpy as np

    if not array.flags.c_contiguous:
        array = array.T
    return array.reshape(-1).view(np.uint8)


def _changes(size: int) -> Iterator[tuple[int, bytes]]:
    """What is written, and where."""
    chance = random.Random(2)
    for _ in range(100):
        start = chance.randrange(size)
        length = min(chance.choice((1, 100, 5000)), size - start)
        yield start, bytes([chance.randrange(1, 256)]) * length


def _same(
    found: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], places: list[int], when: str
) -> None:
    for place in places:
        part = slice(place, place + STEP)
        wrong = (found[part] != right[part]).nonzero()[0]
        if wrong.size:
            raise AssertionError(
                f"{when}: {wrong.size} bytes wrong, the first at {place + int(wrong[0])}"
            )
