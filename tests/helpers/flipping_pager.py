"""A pager that changes the units of every region it may, all the time.

Run as a program it is the pager; see `use_flipping_pager`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from refault.client import spawn
from refault.memory.mapping import Mapping
from refault.memory.unitsize import UnitChooser

__all__ = ["Flipping", "use_flipping_pager"]

BYTES = 4 << 20


class Flipping(UnitChooser):
    """Wants the other size whenever some MiB have come in."""

    turn = 0

    def entered(self, indexes: Sequence[int], mapping: Mapping) -> None:
        self._entered += len(indexes) * mapping.page_size
        if self._entered >= BYTES:
            self._entered = 0
            sizes = (self.large, self.small, self.large, self.largest)
            self.turn = (self.turn + 1) % len(sizes)
            self._want(sizes[self.turn])


def use_flipping_pager() -> None:
    """Let the pager that this process will start be one of these."""
    spawn.COMMAND[:] = ["-P", __file__]


if __name__ == "__main__":
    from refault.pager import units
    from refault.pager.__main__ import main

    # Not by assignment: the name is not one that the module offers.
    vars(units)["UnitChooser"] = Flipping
    sys.exit(main(sys.argv[1:]))
