"""What is known of an array's blocks: which were written, and how often.

A server that has lost a block, or has an older one than was written, cannot know it.  This is
who does: in this process for as long as it lives, and on two masters of a cluster for those
who come later.  A block is written first, and then noted here; so what is noted has been written,
and a write that ended half way has at most not been noted.
"""

from __future__ import annotations

import threading
from array import array
from typing import Any

from refault.errors import StoreError

from . import scripts
from .layout import (
    PAGE_BLOCKS,
    PAGE_BYTES,
    TERM_LIMIT,
    ArrayInfo,
    generation,
    pack_generations,
    unpack_generations,
)
from .server import Command, Server

__all__ = ["Record", "overtaken"]


class Record:
    """The generations of the blocks of one array, read page by page.

    Parameters
    ----------
    info
        Which array.

    Attributes
    ----------
    writing
        Whether this process is the one that may write.
    """

    def __init__(self, info: ArrayInfo) -> None:
        self.info = info
        self.writing = False
        self._term = ""
        self._counter = 0
        self._pages: dict[int, array[int]] = {}
        self._fresh: set[int] = set()
        self._lock = threading.Lock()  # never held while a server is asked
        self._asking = threading.Lock()

    def take(self, server: Server) -> None:
        """Become the one that may write; whoever was before may no longer."""
        with self._asking:
            if self.writing:
                return
            first, *others = self.info.copies
            term = int(self._ask_one(server, self._take(first, "")))
            if term >= TERM_LIMIT:
                raise StoreError(
                    f"the array has been opened for writing {term} times, and can be no more;"
                    " copy it to another key",
                    permanent=True,
                )
            for copy in others:
                self._ask_one(server, self._take(copy, str(term)))
            self._term = str(term)
            self._counter = 0
            # What was read before is older than the last write of the one before.
            self._pages.clear()
            self.writing = True

    def known(self, server: Server, number: int, *, anew: bool = False) -> int:
        """The generation that a block has at least; 0: it was never written.

        Parameters
        ----------
        anew
            Whether to ask the servers again, as those who do not write must.
        """
        page = self._page(server, number // PAGE_BLOCKS, anew=anew and not self.writing)
        return page[number % PAGE_BLOCKS]

    def empty(self, number: int) -> bool:
        """Whether a block cannot be there, since all around it was first written by us."""
        page = number // PAGE_BLOCKS
        return page in self._fresh and not self._pages[page][number % PAGE_BLOCKS]

    def prepare(self, server: Server, blocks: range) -> None:
        """See that there are pages to note blocks in, before there are such blocks."""
        for page in range(blocks.start // PAGE_BLOCKS, -(-blocks.stop // PAGE_BLOCKS)):
            self._page(server, page, anew=False)

    def next_generation(self) -> int:
        """For one write of one block."""
        with self._lock:
            self._counter += 1
            return generation(int(self._term), self._counter)

    def seen(self, number: int, found: int) -> None:
        """A block was read, and has this generation."""
        with self._lock:
            page = self._pages[number // PAGE_BLOCKS]
            page[number % PAGE_BLOCKS] = max(found, page[number % PAGE_BLOCKS])

    def note(self, server: Server, first: int, generations: list[int]) -> None:
        """Blocks from `first` on were written: note it everywhere.

        Raises
        ------
        StoreError
            It could not be noted on all servers, so the blocks must be written again.
        """
        at = 0
        while at < len(generations):
            page, index = divmod(first + at, PAGE_BLOCKS)
            part = generations[at : at + PAGE_BLOCKS - index]
            commands: list[Command] = [
                (
                    *self._script(scripts.NOTE, copy, page),
                    self._epoch,
                    self._term,
                    index * 8,
                    pack_generations(part),
                )
                for copy in self.info.copies
            ]
            for answer in server.ask(commands):
                self._check(answer)
            at += len(part)
        for number, one in enumerate(generations, first):
            self.seen(number, one)

    def check(self, server: Server) -> None:
        """See that the array is still there, and that this process may still write.

        Raises
        ------
        StoreError
            It is gone, or another process writes.
        """
        commands: list[Command] = [
            (*self._script(scripts.NOTE, copy, 0), self._epoch, self._term)
            for copy in self.info.copies
        ]
        for answer in server.ask(commands):
            self._check(answer)

    @property
    def _epoch(self) -> str:
        return self.info.epoch.hex()

    def _page(self, server: Server, page: int, *, anew: bool) -> array[int]:
        found = self._pages.get(page)
        if found is not None and not anew:
            return found
        with self._asking:
            found = self._pages.get(page)
            if found is not None and not anew:
                return found
            commands: list[Command] = [
                (
                    *self._script(scripts.LOAD, copy, page),
                    self._epoch,
                    self._term,
                    f"page:{page}",
                    PAGE_BYTES,
                )
                for copy in self.info.copies
            ]
            answers = [self._check(answer) for answer in server.ask(commands)]
            pages = [unpack_generations(answer) for answer in answers]
            if self.writing and not any(answers):
                self._fresh.add(page)
            with self._lock:
                if found is not None:
                    pages.append(found)
                self._pages[page] = loaded = array("Q", map(max, zip(*pages, strict=True)))
            return loaded

    def _take(self, copy: int, term: str) -> Command:
        meta = self.info.meta_key(self.info.name, copy)
        return ("EVAL", scripts.TAKE, 1, meta, self._epoch, term)

    def _script(self, script: str, copy: int, page: int) -> Command:
        info = self.info
        return ("EVAL", script, 2, info.meta_key(info.name, copy), info.page_key(copy, page))

    def _ask_one(self, server: Server, command: Command) -> int:
        (answer,) = server.ask([command])
        found: int = self._check(answer)
        return found

    def _check(self, answer: Any) -> Any:
        if answer == scripts.GONE:
            raise StoreError(
                "the record of the array, or a part of it, is no longer on the server: it was"
                " deleted, or a node has lost its data; restore the server's data",
                permanent=True,
            )
        if answer == scripts.OVERTAKEN:
            raise overtaken()
        return answer


def overtaken() -> StoreError:
    """Somebody else writes to the array."""
    return StoreError(
        "another process has opened the array for writing since, and only one can write; close it"
        " here, and open it again",
        permanent=True,
    )
