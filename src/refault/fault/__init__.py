"""The fault path: the protocol of "mm: allow VM_FAULT_RETRY for multiple times".

`flags` and `results` are its words, `locks` what it does when a page is locked,
`handlers` what one attempt does, `callers` the loop that retries, `gup` the
same for callers that are not the faulting thread, `reclaim` where memory comes
from.  Nothing here does I/O, knows a clock or draws a random number: what needs
the world is asked of a `Machine`, what must wait is yielded as a `Wait`.
"""

__all__: list[str] = []
