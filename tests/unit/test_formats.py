"""What is cut short is found by what it says of itself; what is sound, or unknown, passes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.transfer import formats


def complaint(name: str, data: bytes) -> str | None:
    return formats.complaint(name, len(data), lambda at, count: data[at : at + count])


def safetensors(sizes: list[int], padding: int = 0) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for number, size in enumerate(sizes):
        extent = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        header[f"tensor {number}"] = extent
        at += size
    text = json.dumps(header).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text + bytes(at)


def archive(files: dict[str, bytes], comment: bytes = b"", *, zip64: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer:
        for name, data in files.items():
            writer.writestr(name, data)
        writer.comment = comment
    return _as_zip64(buffer.getvalue()) if zip64 else buffer.getvalue()


def _as_zip64(data: bytes) -> bytes:
    """Say in 64-bit records what the plain one says, as writers of big archives do."""
    at = data.rfind(b"PK\x05\x06")
    count, length, offset = struct.unpack_from("<HII", data, at + 10)
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, offset
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return data[:at] + record + locator + end


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


BLOCKS = {0: (1, 4), 2: (32, 18), 14: (256, 210), 99: (1, 1)}


def gguf(tensors: list[tuple[int, int]], alignment: int = 32, version: int = 3) -> bytes:
    """Each tensor is a type and a number of blocks."""
    pairs = [
        text("general.name") + struct.pack("<I", 8) + text("a model"),
        text("general.alignment") + struct.pack("<II", 4, alignment),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("") + text("c"),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    infos, at = b"", 0
    for number, (kind, count) in enumerate(tensors):
        per_block, size = BLOCKS[kind]
        infos += text(f"blk.{number}") + struct.pack("<IQIQ", 1, count * per_block, kind, at)
        at += -(-count * size // alignment) * alignment
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs)
    head += infos
    return head + bytes(-len(head) % alignment) + bytes(at)


sizes = st.lists(st.integers(0, 40), max_size=5)
files = st.dictionaries(st.text("ab/", min_size=1), st.binary(max_size=50), min_size=1, max_size=4)


@given(sizes, st.integers(0, 8), st.data())
def test_a_safetensors_file_is_whole_or_found_out(
    sizes: list[int], padding: int, draw: st.DataObject
) -> None:
    data = safetensors(sizes, padding)
    assert complaint("model.safetensors", data) is None
    cut = draw.draw(st.integers(0, len(data) - 1))
    assert complaint("model.safetensors", data[:cut]) is not None
    assert complaint("model.safetensors", data + b"\0") is not None


@given(files, st.binary(max_size=9), st.booleans(), st.data())
def test_a_zip_archive_is_whole_or_found_out(
    files: dict[str, bytes], comment: bytes, zip64: bool, draw: st.DataObject
) -> None:
    data = archive(files, b"" if zip64 else comment, zip64=zip64)
    assert complaint("model.pt", data) is None
    cut = draw.draw(st.integers(4, len(data) - 1))
    assert complaint("model.pt", data[:cut]) is not None


@given(files, files, st.data())
def test_an_archive_in_an_archive_does_not_pass_for_its_end(
    inner: dict[str, bytes], outer: dict[str, bytes], draw: st.DataObject
) -> None:
    nested = archive(inner)
    data = archive({"first": nested, **outer})
    assert complaint("model.pt", data) is None
    end = data.find(nested) + len(nested)
    assert complaint("model.pt", data[:end]) is not None
    assert complaint("model.pt", data[: draw.draw(st.integers(4, len(data) - 1))]) is not None


tensors = st.lists(
    st.tuples(st.sampled_from([0, 2, 14]), st.integers(1, 20)), min_size=1, max_size=5
)


@given(tensors, st.sampled_from([8, 32, 64]), st.sampled_from([2, 3]), st.data())
def test_a_gguf_file_that_lacks_a_tensor_is_found_out(
    tensors: list[tuple[int, int]], alignment: int, version: int, draw: st.DataObject
) -> None:
    data = gguf(tensors, alignment, version)
    assert complaint("model.gguf", data) is None
    kind, count = tensors[-1]
    padding = -count * BLOCKS[kind][1] % alignment
    cut = draw.draw(st.integers(0, len(data) - padding - 1))
    assert complaint("model.gguf", data[:cut]) is not None


@given(st.sampled_from(["a.safetensors", "a.gguf", "a.pt", "a.zip"]), st.binary(max_size=200))
def test_any_bytes_get_a_verdict(name: str, data: bytes) -> None:
    assert complaint(name, data) is None or complaint(name, data)


@given(st.sampled_from(["a.safetensors", "a.gguf", "a.pt"]), sizes, files, tensors, st.data())
def test_a_damaged_header_gets_a_verdict(
    name: str,
    sizes: list[int],
    files: dict[str, bytes],
    tensors: list[tuple[int, int]],
    draw: st.DataObject,
) -> None:
    makers = {"a.safetensors": safetensors(sizes), "a.gguf": gguf(tensors), "a.pt": archive(files)}
    data = bytearray(makers[name])
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    assert complaint(name, bytes(data)) is None or complaint(name, bytes(data))


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '"text"',
        "7",
        '{"a": 1}',
        '{"a": {"data_offsets": 3}}',
        '{"a": {"data_offsets": []}}',
        '{"a": {"data_offsets": [1e999, 2]}}',
        '{"a": {"data_offsets": [0, "x"]}}',
        "[" * 100_000,
    ],
)
def test_a_header_of_other_json_cannot_be_read(header: str) -> None:
    data = len(header).to_bytes(8, "little") + header.encode()
    assert complaint("a.safetensors", data) == "its safetensors header cannot be read"


def test_the_sentence_says_what_is_missing() -> None:
    data = safetensors([100])
    assert complaint("a.safetensors", data[:-1]) == (
        f"the origin has only {len(data) - 1} of the {len(data)} bytes that its header speaks of"
    )
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    assert "pointer of Git LFS" in (complaint("a.safetensors", pointer) or "")
    assert "web page" in (complaint("a.gguf", b"<!DOCTYPE html><html>") or "")


def test_a_lying_length_makes_nobody_read_or_remember_much() -> None:
    asked: list[int] = []

    def read_at(at: int, count: int) -> bytes:
        asked.append(count)
        return (b"\xff" * 7 + b"\x7f" + bytes(100))[at : at + count]

    tracemalloc.start()
    try:
        assert formats.complaint("a.safetensors", 1 << 50, read_at) is not None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert max(asked) <= 64


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.json", "a"])
def test_a_legacy_pickle_or_anything_else_passes(name: str) -> None:
    for data in (pickle.dumps({"weights": [1, 2, 3]}), b"", b"\0" * 100, b"P"):
        assert complaint(name, data) is None


def test_what_a_later_version_may_mean_passes() -> None:
    assert complaint("a.gguf", gguf([(0, 8)], version=4)[:60]) is None
    assert complaint("a.gguf", gguf([(99, 8)])) is None  # a type of tensor
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77)
    assert complaint("a.gguf", head + bytes(100)) is None  # a type of value


def test_an_archive_behind_a_program_passes() -> None:
    assert complaint("a.zip", b"#!/bin/sh\n" + archive({"a": b"b"})) is None
    assert complaint("a.zip", b"no archive at all") is not None
    assert complaint("a.zip", archive({})) is None
