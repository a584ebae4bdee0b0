"""Headers of safetensors files: what we refuse, next to what the format's library refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from refault.client.safetensors.header import BITS, Tensor, header_length, parse_header
from refault.client.safetensors.index import parse_index, shard_path
from refault.errors import UsageError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = b"x" * 8


def raw(header: bytes, data: bytes = DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def made(tensors: Any, data: bytes = DATA) -> bytes:
    return raw(json.dumps(tensors).encode(), data)


def parse(content: bytes) -> dict[str, Tensor]:
    length = header_length(content[:8], len(content), "model")
    return parse_header(content[8 : 8 + length], len(content), "model")


def library_takes(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def we_take(content: bytes) -> bool:
    try:
        parse(content)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(
    "content",
    [
        made({"a": A}),
        made({}, b""),
        made({"a": A, "__metadata__": {"format": "pt"}}),
        made({"a": A, "__metadata__": None}),
        made({"a": {**A, "comment": 1}}),
        raw(json.dumps({"a": A}).encode() + b"     "),
        made({"a": A, "z": {"dtype": "F32", "shape": [3, 0], "data_offsets": [0, 0]}}),
        made({"a": A, "z": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}),
        made({"a": A, "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]}}, DATA + b"y"),
        made({"ä": {**A, "data_offsets": [8, 16]}, "b": A}, 2 * DATA),
        *(
            made({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}, b"x" * bits)
            for dtype, bits in BITS.items()
        ),
    ],
)
def test_what_both_take(content: bytes) -> None:
    assert library_takes(content)
    parse(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"1234567", "only 7 bytes"),
        ((5).to_bytes(8, "little"), "would be 5 bytes long, and the file has 8"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "bytes long, and the file has 10"),
        (raw(b""), "does not begin with"),
        (raw(b"[]"), "does not begin with"),
        (raw(b"{"), "JSON"),
        (raw(b'{"a":' + b"[" * 100_000), "JSON"),
        (raw(b'{"\xff": 1}'), "JSON"),
        (raw(json.dumps({"\ud800": A}).encode()), "JSON"),
        (raw(json.dumps({"a": A}).encode() + b"\0"), "JSON"),
        (made({"a": 5}), "lacks a dtype"),
        (made({"a": {"dtype": "F32", "shape": [2]}}), "lacks a dtype"),
        (made({"a": {**A, "dtype": "F31"}}), "'F31', which is not known"),
        (made({"a": {**A, "dtype": ["F32"]}}), "which is not known"),
        (made({"a": {**A, "shape": [-2]}}), r"shape \[-2\]"),
        (made({"a": {**A, "shape": [2.0]}}), "shape"),
        (made({"a": {**A, "shape": [True, 2]}}), "shape"),
        (made({"a": {**A, "shape": 2}}), "shape"),
        (made({"a": {**A, "shape": [1 << 64]}}), "shape"),
        (made({"a": {**A, "shape": [1 << 32, 1 << 32]}}), "takes .* bytes, and has 8"),
        (made({"a": {**A, "shape": [3]}}), "takes 12 bytes, and has 8"),
        (made({"a": {**A, "data_offsets": [8, 0]}}), "has -8"),
        (made({"a": {**A, "data_offsets": [0, 8, 8]}}), "data_offsets"),
        (made({"a": {**A, "data_offsets": [-8, 0]}}), "data_offsets"),
        (made({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}), "takes 1.5 bytes"),
        (made({"a": A}, DATA[1:]), "ends at .* and the file has"),
        (made({"a": A}, DATA + b"y"), "end at .* and the file has"),
        (made({}, b"y"), "end at .* and the file has"),
        (made({"a": A, "b": A}), "'b' overlaps"),
        (made({"a": A, "b": {**A, "data_offsets": [4, 12]}}, b"x" * 12), "'b' overlaps"),
        (made({"a": A, "b": {**A, "data_offsets": [9, 17]}}, b"x" * 17), "'b' leaves a gap"),
        (made({"a": {**A, "data_offsets": [1, 9]}}, b"x" * 9), "'a' leaves a gap"),
        (made({"a": A, "__metadata__": {"n": 1}}), "__metadata__"),
        (made({"a": A, "__metadata__": ["n"]}), "__metadata__"),
    ],
)
def test_what_both_refuse(content: bytes, message: str) -> None:
    assert not library_takes(content)
    with pytest.raises(UsageError, match=rf"model is not a valid safetensors file: .*{message}"):
        parse(content)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b' {"a": %s}', "does not begin with"),
        (b'{"a": %s, "a": %s}', "twice"),
    ],
)
def test_where_we_are_stricter(header: bytes, message: str) -> None:
    """The format's description forbids both."""
    content = raw(header.replace(b"%s", json.dumps(A).encode()))
    with pytest.raises(UsageError, match=message):
        parse(content)


def test_long_headers_are_refused_before_they_are_read() -> None:
    with pytest.raises(UsageError, match="longer than the 100000000 allowed"):
        header_length((100_000_001).to_bytes(8, "little"), 1 << 40, "model")
    assert header_length((100_000_000).to_bytes(8, "little"), 1 << 40, "model") == 100_000_000


sizes = st.integers(0, 20)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(BITS)),
        "shape": st.lists(st.integers(0, 3), max_size=3),
        "data_offsets": st.tuples(sizes, sizes).map(sorted),
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=3), tensors, max_size=3), sizes)
def test_both_agree_on_any_places(header: dict[str, Any], length: int) -> None:
    content = made(header, b"x" * length)
    assert we_take(content) == library_takes(content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_taken_as_the_library_takes_it(data: st.DataObject) -> None:
    """One byte of a header is another one."""
    content = bytearray(made({"a": A, "b": {**A, "data_offsets": [8, 16]}}, 2 * DATA))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    if we_take(bytes(content)):
        assert library_takes(bytes(content))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"\xff", "not valid JSON"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "no weight_map"),
        (b'{"weight_map": {"a": "../b.safetensors"}}', "not a .safetensors file beside it"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "not a .safetensors file beside it"),
        (b'{"weight_map": {"a": "b.bin"}}', "not a .safetensors file beside it"),
    ],
)
def test_an_index_that_is_none_is_refused(index: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_index(index, "model.safetensors.index.json")


def test_files_of_a_model_lie_beside_its_index() -> None:
    assert shard_path("m.safetensors.index.json", "1.safetensors") == "1.safetensors"
    assert shard_path("/a/m.safetensors.index.json", "1.safetensors") == "/a/1.safetensors"
    assert shard_path("s3://b/m.safetensors.index.json", "1.safetensors") == "s3://b/1.safetensors"
