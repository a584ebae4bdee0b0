"""Arrays in chunks against the suite of all stores; each kind of file once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.chunked import save
from refault.stores.chunked import ChunkedStore, find
from refault.testing import WritableStoreTests


class Chunked(WritableStoreTests):
    """Bytes as an array of three axes, in chunks that no axis is a multiple of."""

    shape = (71, 37, 53)
    size = 71 * 37 * 53
    examples = 10
    kind = ""

    def make_store(self, content: bytes, folder: Path) -> Any:
        array = np.frombuffer(content, "u1").reshape(self.shape)
        path, key = save(self.kind, folder, array, (20, 9, 30))
        return ChunkedStore(find(path, key=key, writable=True), writable=True)


class TestZarr3(Chunked):
    kind = "zarr3"


class TestShards(Chunked):
    kind = "shards"


class TestHdf5(Chunked):
    kind = "hdf5"


class TestBlosc2(Chunked):
    kind = "blosc2"


del Chunked
