"""What userfaultfd does on this kernel: a scenario for each number of the list.

The list, and its numbers, are those of the kernel's own tests as `docs/kernel-scenarios.md` shows
them; the scenarios are written on the binding of refault.  Each runs in a process of its own.
"""

from __future__ import annotations

__all__: list[str] = []
