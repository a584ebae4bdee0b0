"""Pages, mappings, address spaces and what they may hold: plain data, no I/O."""

__all__: list[str] = []
