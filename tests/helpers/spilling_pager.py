"""A pager whose swap keeps nothing in memory: to read a page back it must wait for the disk.

Run as a program it is the pager; see `use_spilling_pager`.
"""

from __future__ import annotations

import sys

from refault.client import spawn

__all__ = ["use_spilling_pager"]


def use_spilling_pager() -> None:
    """Let the pager that this process will start be one of these."""
    spawn.COMMAND[:] = ["-P", __file__]


if __name__ == "__main__":
    from refault.pager import service
    from refault.pager.__main__ import main

    # Not by assignment: the name is not one that the module offers.
    vars(service)["SWAP_SHARE"] = 1 << 60
    sys.exit(main(sys.argv[1:]))
