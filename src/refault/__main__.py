"""``python -m refault``: see `refault.cli`."""

from __future__ import annotations

import sys

from refault.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
