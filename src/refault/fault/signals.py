"""Signals are looked at before every retry.

Source: the mail ("we should always try to detect pending signals before a
retry to make sure the continuous page faults can still be interrupted if
necessary") and ``fault_signal_pending`` of the merged series.
"""

from __future__ import annotations

from refault.memory.wait import Task

from .results import VM_FAULT_RETRY

__all__ = ["fault_signal_pending"]


def fault_signal_pending(result: int, task: Task, *, user: bool) -> bool:
    """Tell whether a fault that asks for a retry must stop instead.

    Parameters
    ----------
    result
        `VmFault` bits that the attempt returned.
    task
        Whose signals count.
    user
        Whether the fault comes from user mode (`FaultFlag.USER`): then every signal
        counts, else only a fatal one.

    Returns
    -------
    bool
        True only together with RETRY: the lock has been given up already, so the
        caller can leave at once.
    """
    return bool(result & VM_FAULT_RETRY) and (
        task.fatal_signal_pending() or (user and task.signal_pending())
    )
