"""The conformance suite of stores: what every store promises, as tests to inherit.

A subclass says how a store with some content is made; pytest collects the rest::

    from refault.testing import StoreTests

    class TestMyStore(StoreTests):
        def make_store(self, content, folder):
            path = folder / "content"
            path.write_bytes(content)
            return MyStore(path)

What needs more than a folder gets it from fixtures of pytest::

    class TestBucketStore(StoreTests):
        examples = 20  # It is slow.

        @pytest.fixture(autouse=True)
        def bucket(self, server):
            self.url = server.new_bucket()

        def make_store(self, content, folder):
            return BucketStore(put(self.url, folder.name, content))

and one whose bytes are elements sets `size` to a multiple of theirs.  Each call of
`make_store` must give a new place.

A store is tested as the pager uses it, through `refault.stores.objects.ObjectStore`.
Neither pytest nor hypothesis is imported before a test needs it.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from refault.stores.base import is_writable
from refault.stores.objects import dump_object, load_object

from . import paging
from .storecase import StoreCase, fail, raised, random_content

__all__ = ["StoreTests", "WritableStoreTests"]

PAGE = 4096
THREADS = 8


class StoreTests:
    """What holds for every store; of one that can be written, take `WritableStoreTests`.

    Attributes
    ----------
    size
        Bytes of the content that stores are made with.  Not a multiple of any page, so
        that the last one is short; change it if a store cannot have any size, to 70,000
        at least.
    examples
        How many random reads a test makes.  Fewer make a slow store's tests faster.
    resident, page_size
        How much memory arrays have in the tests that page.
    seconds
        How long a test that pages may take, before its processes are killed.
    shrink
        Whether an order of calls that fails is made as short as it can be, which may take
        a minute.
    """

    size = 5 * 65536 + 4321
    examples = 100
    resident = 64 << 10
    page_size = 4 << 10
    seconds = 60.0
    shrink = True

    def make_store(self, content: bytes, folder: Path) -> Any:
        """Return a store that holds `content`; to be defined by the subclass.

        Its name must not end with ``.npy``: there is no header.

        Parameters
        ----------
        content
            What it shall hold; no byte is 0.
        folder
            A new, empty folder for whatever it needs.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method make_store")

    def open_as(self, store: Any) -> Any:
        """Return what `refault.open` is given to page `store`: the store itself, or a path."""
        return store

    def copy_store(self, store: Any) -> Any:
        """Return another store of the same place, as the pager gets it: by pickle.

        If a store belongs to one version of its content, open that place anew instead.
        """
        return load_object(dump_object(store), [])

    # -- what it is -----------------------------------------------------------

    def test_size_is_the_number_of_bytes(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            if case.store.size != len(case.model):
                fail(f"{case.name}: its size is {case.store.size}, and it holds {len(case.model)}")

    def test_name_is_one_line(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            if not case.name.strip() or "\n" in case.name:
                fail(f"its name is {case.name!r}; messages need one that is a line of text")

    def test_writes_are_tested_if_there_are_any(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            writable = is_writable(case.raw)
        if writable and not isinstance(self, WritableStoreTests):
            fail(f"{case.name} can be written: inherit from WritableStoreTests")
        if not writable and isinstance(self, WritableStoreTests):
            fail(f"{case.name} cannot be written: inherit from StoreTests")

    # -- reading --------------------------------------------------------------

    def test_reads_everything_at_once(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            case.check(0, self.size)

    def test_reads_page_after_page(self, tmp_path: Path) -> None:
        step = max(1, self.size // self.examples // PAGE) * PAGE
        with self._case(tmp_path) as case:
            for offset in range(0, self.size, step):
                case.check(offset, min(step, self.size - offset))

    def test_reads_any_part(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for offset, length in self._ranges(1):
                case.check(offset, length)

    def test_reads_around_boundaries(self, tmp_path: Path) -> None:
        powers = (1 << bits for bits in range(8, self.size.bit_length()))
        places = [place for one in powers for place in (one, 3 * one) if place < self.size]
        with self._case(tmp_path) as case:
            for place in places:
                case.check(place - 1, 2)
                case.check(place, min(100, self.size - place))

    def test_reads_the_end(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for length in (1, 2, 100, PAGE, PAGE + 1):
                case.check(self.size - length, length)

    def test_reads_the_same_again(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for _ in range(3):
                case.check(0, 3 * PAGE)

    def test_lets_go_of_the_buffer(self, tmp_path: Path) -> None:
        """What becomes of a buffer after the read does not change the store."""
        with self._case(tmp_path) as case:
            buffer = bytearray(PAGE)
            case.read(0, memoryview(buffer))
            buffer[:] = bytes(PAGE)
            case.check(0, PAGE)

    def test_raises_behind_the_end(self, tmp_path: Path) -> None:
        end = self.size
        with self._case(tmp_path) as case:
            for offset, length in ((end - 1, PAGE), (end, 1), (end + PAGE, PAGE), (0, end + 1)):
                case.check_behind_the_end(offset, length)
            case.check(end // 2, 100)

    def test_reads_in_many_threads(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:

            def read(number: int) -> None:
                for offset, length in self._ranges(100 + number, self.examples // 4 + 1):
                    case.check(offset, length)

            _in_threads(read)

    def test_read_nowait_is_all_or_nothing(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for offset, length in [*self._ranges(2), (self.size - 1, PAGE), (self.size, 1)]:
                case.check_nowait(offset, length)

    def test_bytes_had_without_asking_are_the_same(self, tmp_path: Path) -> None:
        """What ``where`` leads to, if there is one, is what the store holds."""
        with self._case(tmp_path) as case:
            where = getattr(case.raw, "where", None)
            place = where(PAGE) if callable(where) else None
            if place is None:
                return
            for offset in range(0, self.size, PAGE):
                length = min(PAGE, self.size - offset)
                if place.constant:
                    case.compare(bytes(place.constant[:length]), offset, "where")
                if place.fd >= 0:
                    case.compare(os.pread(place.fd, length, offset), offset, "where")

    # -- in another process ---------------------------------------------------

    def test_travels_to_the_pager(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            with self._copy(case) as copy:
                if copy.name != case.name:
                    fail(f"{case.name}: its copy is named {copy.name!r}")
                for offset, length in self._ranges(3, 10):
                    copy.check(offset, length)

    def test_travels_after_it_was_used(self, tmp_path: Path) -> None:
        """What it opened when it was first read stays here."""
        with self._case(tmp_path) as case:
            case.check(0, 1)
            with self._copy(case) as copy:
                copy.check(self.size - 1, 1)
            case.check(0, 1)

    def test_paged_array_is_right(self, tmp_path: Path) -> None:
        """In order and at random, with less memory than the array has."""
        with self._case(tmp_path) as case:
            self._page(case, tmp_path, writable=False)

    def test_any_order_of_calls(self, tmp_path: Path) -> None:
        """`StoreStateMachine`: random calls, against bytes in memory."""
        try:
            from .storemachine import StoreStateMachine, run_store_machine
        except ImportError:
            import pytest

            pytest.skip("hypothesis is missing: pip install hypothesis")
        content = random_content(self.size, 4)

        def machine() -> StoreStateMachine:
            store = self.make_store(content, _new_folder(tmp_path))
            return StoreStateMachine(store, content, self.copy_store)

        run_store_machine(machine, examples=self.examples // 5 + 1, shrink=self.shrink)

    # -- what the tests need --------------------------------------------------

    @contextlib.contextmanager
    def _case(self, folder: Path) -> Iterator[StoreCase]:
        content = random_content(self.size)
        case = StoreCase(self.make_store(content, _new_folder(folder)), content)
        with contextlib.closing(case):
            yield case

    @contextlib.contextmanager
    def _copy(self, case: StoreCase) -> Iterator[StoreCase]:
        copy = StoreCase(self.copy_store(case.raw), case.model)
        with contextlib.closing(copy):
            yield copy

    def _ranges(self, seed: int, count: int | None = None) -> Iterator[tuple[int, int]]:
        chance = random.Random(seed)
        for _ in range(self.examples if count is None else count):
            offset = chance.randrange(self.size)
            length = min(chance.choice((1, 7, 512, PAGE, 10_000, 100_000)), self.size - offset)
            yield offset, length

    def _page(self, case: StoreCase, folder: Path, *, writable: bool) -> None:
        __tracebackhide__ = True
        case.model[:] = paging.check(
            self.open_as(case.raw),
            bytes(case.model),
            folder,
            writable=writable,
            resident=self.resident,
            page_size=self.page_size,
            seconds=self.seconds,
        )


class WritableStoreTests(StoreTests):
    """What holds for a store that can be written: all of `StoreTests`, and more.

    What one object has written and flushed, another one of the same place reads:
    the pager writes through an object of its own.
    """

    def test_reads_what_was_written(self, tmp_path: Path) -> None:
        ends = [(0, PAGE), (self.size - 1, 1), (self.size - 10, 10)]
        with self._case(tmp_path) as case:
            for number, (offset, length) in enumerate([*ends, *self._ranges(5)]):
                case.write(offset, random_content(length, number))
                case.check(offset, length)
            case.check(0, self.size)

    def test_writes_everything_at_once(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            case.write(0, random_content(self.size, 6))
            case.check(0, self.size)

    def test_writes_touch_nothing_else(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for place in (1, PAGE - 1, PAGE, 65536 - 3, 65536 + 5, self.size - 20):
                case.write(place, b"x" * 10)
                case.check(0, self.size)

    def test_later_writes_win(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for number, offset in enumerate((100, 0, 50, 149, 100)):
                case.write(offset, random_content(100, number))
            case.check(0, 300)

    def test_never_writes_behind_the_end(self, tmp_path: Path) -> None:
        end = self.size
        with self._case(tmp_path) as case:
            for offset, length in ((end - 1, 2), (end, 1), (end + PAGE, PAGE)):
                if raised(case.store.write_from, offset, memoryview(b"w" * length)) is None:
                    fail(
                        f"{case.name}: took {length} bytes at {offset}, and ends at {end}; it "
                        "must raise"
                    )
            if case.raw.size != end:
                fail(f"{case.name}: its size has become {case.raw.size}")
            case.check(0, end - 1)

    def test_writes_in_many_threads(self, tmp_path: Path) -> None:
        """To places beside each other, which no write may take with it."""
        length = max(1000, self.size // self.examples)
        places = list(range(0, self.size - length, length))
        random.Random(7).shuffle(places)
        with self._case(tmp_path) as case:

            def write(number: int) -> None:
                for place in places[number::THREADS]:
                    case.write(place, random_content(length, place))

            _in_threads(write)
            case.check(0, self.size)

    def test_reads_while_others_write(self, tmp_path: Path) -> None:
        """What is beside a write is right all the time."""
        third = self.size // 3
        with self._case(tmp_path) as case:

            def work(number: int) -> None:
                chance = random.Random(number)
                for _ in range(self.examples // 4 + 1):
                    length = chance.randint(1, min(third, 3000))
                    if number % 2:
                        case.write(third - length, b"v" * length)
                        case.write(2 * third, b"v" * length)
                    else:
                        case.check(2 * third - length, length)
                        case.check(third, length)

            _in_threads(work)

    def test_flushed_is_what_others_read(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            for number, (offset, length) in enumerate(self._ranges(8, 10)):
                case.write(offset, random_content(length, number))
            case.store.flush()
            with self._copy(case) as copy:
                copy.check(0, self.size)

    def test_flushes_when_nothing_was_written(self, tmp_path: Path) -> None:
        with self._case(tmp_path) as case:
            case.store.flush()
            case.store.flush()
            case.check(0, 100)

    def test_paged_changes_are_kept(self, tmp_path: Path) -> None:
        """Changes of a paged array are in the array, and after a flush in the store."""
        with self._case(tmp_path) as case:
            self._page(case, tmp_path, writable=True)
            with self._copy(case) as copy:
                copy.check(0, self.size)


def _new_folder(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="store-", dir=folder))


def _in_threads(work: Callable[[int], None]) -> None:
    """Run `work` in threads that interrupt each other as often as they can."""
    start = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        start.wait()
        work(number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for one in [pool.submit(begin, number) for number in range(THREADS)]:
                one.result()
    finally:
        sys.setswitchinterval(before)
