"""The pager: the process that serves the page faults of its clients."""

__all__: list[str] = []
