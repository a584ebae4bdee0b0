"""Models as arrays and tensors, paged for real; each test is a child process."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import save

from helpers.child import run_child
from helpers.s3_server import S3
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install torch"
)


def arrays() -> None:
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    import refault

    chance = np.random.default_rng(1)
    kinds = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
    right = {kind: chance.integers(0, 2, (3, 50)).astype(kind) for kind in kinds}
    right["bf16"] = chance.normal(size=(7, 30)).astype(ml_dtypes.bfloat16)
    right |= {"scalar": np.array(3.5), "none": np.zeros((0, 4), "f4")}
    save_file(right, "model.safetensors")
    model = refault.load_safetensors("model.safetensors", resident="8KiB", page_size="4KiB")
    assert model.keys() == right.keys()
    for name, array in model.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name
        assert not array.flags.writeable
    region = refault.region(model["f4"])
    assert refault.region(model["bf16"]) is region
    assert region.statistics().peak_resident <= 8192
    assert [*refault.load_safetensors("model.safetensors", names=["u8", "f2"])] == ["u8", "f2"]


def test_arrays_are_those_that_were_saved() -> None:
    run_child(arrays, timeout=60)


def eight_bits() -> None:
    """The library's numpy side does not know them."""
    import json

    import ml_dtypes
    import numpy as np

    import refault
    from refault.client.safetensors.dtypes import ML_DTYPES

    kinds = {name: np.dtype(getattr(ml_dtypes, kind)) for name, kind in ML_DTYPES.items()}
    del kinds["BF16"]
    content = bytes(range(256))
    header = {
        name: {"dtype": name, "shape": [16, 16], "data_offsets": [256 * i, 256 * i + 256]}
        for i, name in enumerate(kinds)
    }
    text = json.dumps(header).encode()
    with open("model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + content * len(kinds))
    for name, array in refault.load_safetensors("model.safetensors").items():
        assert array.dtype == kinds[name]
        assert array.shape == (16, 16)
        assert array.tobytes() == content
    # One, as each of them writes it.
    one = {"F8_E4M3": 0x38, "F8_E5M2": 0x3C, "F8_E8M0": 0x7F}
    model = refault.load_safetensors("model.safetensors")
    for name, byte in one.items():
        assert float(model[name].reshape(-1)[byte]) == 1.0, name


def test_floats_of_eight_bits() -> None:
    run_child(eight_bits, timeout=60)


def lazily() -> None:
    import numpy as np
    from safetensors.numpy import save_file

    import refault

    rows = 1 << 14
    save_file({"a": np.arange(rows << 10, dtype="f4").reshape(rows, -1)}, "model.safetensors")
    model = refault.load_safetensors("model.safetensors", page_size="64KiB", readahead=False)
    assert model["a"][rows // 2, 5] == rows // 2 * 1024 + 5
    seen = refault.region(model["a"]).statistics()
    assert seen.bytes_read <= 4 << 16, seen
    changed = refault.load_safetensors("model.safetensors", mode="c")
    changed["a"][0] = 1
    written = refault.load_safetensors("model.safetensors", mode="r+")
    written["a"][1] = 2
    refault.region(written["a"]).flush()
    again = refault.load_safetensors("model.safetensors")["a"]
    assert (again[0] == np.arange(1024)).all()
    assert (again[1] == 2).all()


def test_only_what_is_touched_is_read_and_modes_are_those_of_open() -> None:
    run_child(lazily, timeout=60)


def sharded() -> None:
    import json
    import os
    import pathlib

    import numpy as np
    from safetensors.numpy import save_file

    import refault

    pathlib.Path("model").mkdir()
    right = {f"layer.{i}": np.full((100, 100), i, "f4") for i in range(6)}
    shards = {}
    for shard in range(3):
        file = f"model-{shard}.safetensors"
        inside = {name: right[name] for name in (f"layer.{shard}", f"layer.{shard + 3}")}
        save_file(inside, f"model/{file}")
        shards |= dict.fromkeys(inside, file)
    index = pathlib.Path("model/model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": shards}))
    model = refault.load_safetensors(index, resident="96KiB", page_size="4KiB")
    assert model.keys() == right.keys()
    for name, array in model.items():
        assert np.array_equal(array, right[name])
    regions = {id(refault.region(array)) for array in model.values()}
    assert len(regions) == 3
    assert refault.region(model["layer.0"]) is refault.region(model["layer.3"])
    peak = sum(refault.region(model[f"layer.{i}"]).statistics().peak_resident for i in range(3))
    assert peak <= 96 << 10
    os.remove("model/model-0.safetensors")
    some = refault.load_safetensors(str(index), names=["layer.4", "layer.1"])
    assert list(some) == ["layer.4", "layer.1"]
    assert (some["layer.4"] == 4).all()
    for names, error, message in (
        (["layer.0"], FileNotFoundError, "model-0"),
        (["layer.9"], refault.UsageError, "no tensor 'layer.9'; it has 6: 'layer.0'"),
    ):
        try:
            refault.load_safetensors(index, names=names)
        except error as caught:
            assert message in str(caught), caught
        else:
            raise AssertionError(names)
    index.write_text(json.dumps({"weight_map": {"layer.7": "model-1.safetensors"}}))
    try:
        refault.load_safetensors(index)
    except refault.UsageError as caught:
        assert "model-1.safetensors: has no tensor 'layer.7'" in str(caught)
    else:
        raise AssertionError("took a tensor that is not there")


def test_models_in_several_files() -> None:
    run_child(sharded, timeout=60)


def refused() -> None:
    import json
    import sys

    import numpy as np
    from safetensors.numpy import save_file

    import refault

    def write(name: str, tensor: dict[str, object], length: int) -> None:
        text = json.dumps({"x": tensor}).encode()
        with open(name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + bytes(length))

    save_file({"x": np.zeros(4, "f4")}, "good.safetensors")
    write("f4.safetensors", {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}, 2)
    write("bf16.safetensors", {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}, 8)
    write("ranks.safetensors", {"dtype": "U8", "shape": [1] * 99, "data_offsets": [0, 1]}, 1)
    open("empty.safetensors", "wb").close()
    with open("html.safetensors", "wb") as file:
        file.write(b"<!DOCTYPE html><html>404</html>")
    with open("good.safetensors", "rb") as file:
        content = file.read()
    with open("short.safetensors", "wb") as file:
        file.write(content[:-1])
    sys.modules["torch"] = sys.modules["ml_dtypes"] = None
    for path, options, message in (
        ("empty.safetensors", {}, "only 0 bytes"),
        ("html.safetensors", {}, "not a valid safetensors file"),
        ("short.safetensors", {}, "check that it is complete"),
        ("f4.safetensors", {}, "several elements share a byte"),
        ("bf16.safetensors", {}, "pip install 'refault[safetensors]'"),
        ("ranks.safetensors", {}, "cannot be made by numpy"),
        ("good.safetensors", {"framework": "jax"}, "neither 'numpy' nor 'torch'"),
        ("good.safetensors", {"framework": "torch"}, "pip install torch"),
        ("good.safetensors", {"mode": "w+"}, "mode='w+'"),
        ("good.safetensors", {"names": ["y"]}, "no tensor 'y'"),
    ):
        try:
            refault.load_safetensors(path, **options)
        except refault.UsageError as error:
            assert message in str(error), error
        else:
            raise AssertionError(path, options)


def test_what_cannot_be_loaded_is_told() -> None:
    run_child(refused, timeout=60)


def from_store() -> None:
    import numpy as np
    import stored
    from safetensors.numpy import save_file

    import refault

    right = {"a": np.arange(1 << 20, dtype="u4"), "b": np.ones(3, "f8")}
    save_file(right, "model.safetensors")
    model = refault.load_safetensors(stored.Stored("model.safetensors"), resident="1MiB")
    assert np.array_equal(model["a"], right["a"])
    assert np.array_equal(model["b"], right["b"])
    try:
        refault.load_safetensors(stored.Stored("model.safetensors", broken=True), deadline=0.2)
    except refault.StoreError as error:
        assert "the line is dead" in str(error)
    else:
        raise AssertionError("read from a store that does not answer")


def test_models_in_a_store() -> None:
    module = """
        import os

        class Stored:
            def __init__(self, path, broken=False):
                self.path = os.path.abspath(path)
                self.size = os.path.getsize(path)
                self.broken = broken

            def read_into(self, offset, buffer):
                if self.broken:
                    raise OSError("the line is dead")
                with open(self.path, "rb") as file:
                    file.seek(offset)
                    return file.readinto(buffer)
    """
    run_child(from_store, timeout=60, files={"stored.py": module})


def from_bucket(index: str, options: str) -> None:
    import json

    import numpy as np

    import refault

    model = refault.load_safetensors(
        index, resident="256KiB", page_size="64KiB", storage_options=json.loads(options)
    )
    rows = 1 << 12
    assert model["a"][rows // 2, 5] == rows // 2 * 1024 + 5
    seen = refault.region(model["a"]).statistics()
    # The header, the row, and what is read ahead: a small part of 16 MiB.
    assert seen.bytes_read < 1 << 20, seen
    assert np.array_equal(model["b"], np.ones(3))
    assert np.array_equal(model["a"], np.arange(rows << 10, dtype="f4").reshape(rows, -1))
    assert refault.region(model["a"]).statistics().peak_resident <= 128 << 10


def test_models_in_a_bucket(s3: S3) -> None:
    rows = 1 << 12
    parts = {
        "1.safetensors": {"a": np.arange(rows << 10, dtype="f4").reshape(rows, -1)},
        "2.safetensors": {"b": np.ones(3)},
    }
    for name, part in parts.items():
        s3.put(f"llm/{name}", save(part))
    shards = {key: name for name, part in parts.items() for key in part}
    index = json.dumps({"weight_map": shards}).encode()
    url = s3.put("llm/model.safetensors.index.json", index)
    run_child(from_bucket, timeout=60, args=[url, json.dumps(s3.options)])


def unaligned() -> None:
    import json

    import numpy as np

    import refault

    text = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "x": {"dtype": "F32", "shape": [4], "data_offsets": [1, 17]},
        }
    ).encode()
    text += b" " * (-len(text) % 8)
    right = np.arange(4, dtype="f4")
    with open("model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"b" + right.tobytes())
    found = refault.load_safetensors("model.safetensors")["x"]
    assert not found.flags.aligned
    assert np.array_equal(found, right)
    try:
        import torch  # noqa: F401
    except ImportError:
        return
    try:
        refault.load_safetensors("model.safetensors", "torch")
    except refault.UsageError as error:
        assert "not at a multiple of its 4 bytes" in str(error)
    else:
        raise AssertionError("gave torch what is not aligned")


def test_tensors_that_are_not_aligned() -> None:
    run_child(unaligned, timeout=60)


def tensors() -> None:
    import gc

    import torch
    from safetensors.torch import save_file

    import refault

    torch.manual_seed(1)
    normal = torch.randn(70, 30)
    right = {str(kind): normal.to(kind) for kind in (torch.float32, torch.float16, torch.float64)}
    right |= {
        str(kind): normal.to(kind)
        for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
    }
    right |= {"bool": normal > 0, "scalar": torch.tensor(3.5), "none": torch.zeros(0, 4)}
    save_file(right, "model.safetensors")
    for mode in (None, "r"):
        model = refault.load_safetensors("model.safetensors", "torch", mode=mode)
        assert model.keys() == right.keys()
        for name, tensor in model.items():
            assert tensor.dtype == right[name].dtype, name
            assert tensor.shape == right[name].shape, name
            bits = [one.reshape(-1).view(torch.uint8) for one in (tensor, right[name])]
            assert torch.equal(*bits), name
        # The same memory, whatever its dtype.
        tensor = model["torch.bfloat16"]
        region = refault.region(tensor)
        assert refault.region(model["bool"]) is region
        start = region.array.ctypes.data
        assert start < tensor.data_ptr() < start + region.nbytes
        if mode is None:
            tensor[0] = 7
            assert (tensor[0] == 7).all()
            assert (
                refault.load_safetensors("model.safetensors", "torch")["torch.bfloat16"][0] != 7
            ).any()
        else:
            assert (normal @ model["torch.float32"].T).equal(normal @ normal.T)
        # A tensor keeps the memory, and nothing else does.
        del model, bits
        gc.collect()
        assert tensor.sum().isfinite()
        try:
            region.close()
        except refault.UsageError:
            pass
        else:
            raise AssertionError("closed under a tensor")
        del tensor
        gc.collect()
        region.close()


@needs_torch
def test_tensors_of_torch_are_the_same_memory() -> None:
    run_child(tensors, timeout=60)


def packed() -> None:
    import json

    import torch

    import refault

    text = json.dumps({"x": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    with open("model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"\x01\x23\x45\x67")
    found = refault.load_safetensors("model.safetensors", "torch")["x"]
    assert found.dtype == torch.float4_e2m1fn_x2
    assert found.shape == (2, 2)
    assert found.view(torch.uint8).tolist() == [[0x01, 0x23], [0x45, 0x67]]


@needs_torch
def test_floats_of_four_bits_share_bytes() -> None:
    run_child(packed, timeout=60)
