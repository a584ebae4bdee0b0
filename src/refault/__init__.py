"""numpy arrays larger than memory, on real memory whose page faults are handled in Python.

    x = refault.open("emb.npy", resident="2GiB")
    y = refault.zeros((1 << 34,), "f4", resident="1GiB")
    region = refault.region(x)

Names are imported when they are first used: neither the pager, which is a process of its
own, nor the command line needs numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refault._version import __version__
from refault.errors import Error, KernelError, StoreError, UsageError
from refault.lazy import lazily

if TYPE_CHECKING:
    from refault.checkpoints.checkpoints import Checkpoints
    from refault.checkpoints.records import Checkpoint
    from refault.checkpoints.saves import Save
    from refault.client.configuring import configure
    from refault.client.creating import empty, full, zeros
    from refault.client.handles import Handle, handle
    from refault.client.marks import Mark
    from refault.client.opening import open
    from refault.client.pin import Pin
    from refault.client.region import Region, region
    from refault.client.safetensors import load_safetensors
    from refault.client.snapshot import Snapshot, snapshot
    from refault.client.statistics import RegionStatistics
    from refault.client.taking import take

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Error",
    "Handle",
    "KernelError",
    "Mark",
    "Pin",
    "Region",
    "RegionStatistics",
    "Save",
    "Snapshot",
    "StoreError",
    "UsageError",
    "__version__",
    "configure",
    "empty",
    "full",
    "handle",
    "load_safetensors",
    "open",
    "region",
    "snapshot",
    "take",
    "zeros",
]

_HOMES = {
    "Checkpoint": "checkpoints.records",
    "Checkpoints": "checkpoints.checkpoints",
    "Handle": "client.handles",
    "Mark": "client.marks",
    "Pin": "client.pin",
    "Region": "client.region",
    "RegionStatistics": "client.statistics",
    "Save": "checkpoints.saves",
    "Snapshot": "client.snapshot",
    "configure": "client.configuring",
    "empty": "client.creating",
    "full": "client.creating",
    "handle": "client.handles",
    "load_safetensors": "client.safetensors",
    "open": "client.opening",
    "region": "client.region",
    "snapshot": "client.snapshot",
    "take": "client.taking",
    "zeros": "client.creating",
}

__getattr__, __dir__ = lazily(globals(), _HOMES)
