"""What a device copies is what lies there, however it lies there."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.saving.pinning import Pinning
from ckptd.tensors import framing, streams
from ckptd.tensors.copying import Copying
from ckptd.tensors.samples import Glance
from fakes.streams import ThreadStream, playing

MIB = 1 << 20
DTYPES = [
    *(torch.bool, torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int64),
    *(torch.complex64, torch.complex128),
]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(["plain", "transposed", "strided", "conjugate"]),
    st.integers(1, 100),
)
def test_the_bytes_are_the_elements_in_order_cut_where_registered_memory_is(
    dtype: torch.dtype, shape: list[int], how: str, piece_bytes: int
) -> None:
    count = int(torch.Size(shape).numel())
    tensor = torch.arange(count).to(dtype).reshape(shape)
    if how == "transposed":
        tensor = tensor.transpose(0, -1) if shape else tensor
    elif how == "strided":
        tensor = torch.stack([tensor, tensor], -1)[..., 0]
    elif how == "conjugate" and dtype.is_complex:
        tensor = (tensor * 1j).conj()
    expected = tensor.resolve_conj().flatten().clone(memory_format=torch.contiguous_format)
    memory = bytearray(count * dtype.itemsize)
    with pytest.MonkeyPatch.context() as patch, playing():
        patch.setattr(streams, "PIECE_BYTES", piece_bytes)
        with Copying(()) as copying:
            if memory:
                assert copying.takes("w", memoryview(memory), tensor)
            copying.start()
        assert copying.is_complete
    assert bytes(memory) == bytes(expected.view(torch.uint8).tolist())
    assert framing.payload_bytes(dtype, tuple(tensor.shape)) == len(memory)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.integers(4096, 1 << 18))
def test_pieces_are_all_of_it_and_none_crosses_a_bound(
    address: int, size_bytes: int, piece_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", piece_bytes)
        pieces = list(streams.pieces(address, size_bytes))
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces)][: len(pieces)]
    assert sum(end - start for start, end in pieces) == size_bytes
    for start, end in pieces:
        assert start < end
        assert (address + start) // piece_bytes == (address + end - 1) // piece_bytes


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 200), st.integers(1, 4))
def test_elements_that_all_change_between_two_looks_are_seen_to(
    dtype: torch.dtype, rows: int, columns: int
) -> None:
    tensor = torch.ones(columns, rows + 100).to(dtype).t()[:rows]
    glance = Glance([("w", tensor)])
    glance.look_again()
    assert glance.changed() is None
    tensor.copy_(torch.zeros_like(tensor))
    glance.look_again()
    assert glance.changed() == ("w" if dtype.itemsize < 16 else None)


def test_what_is_looked_at_lies_in_the_tensor() -> None:
    memory = torch.zeros(4 * MIB, dtype=torch.uint8)
    glance = Glance([("part", memory[MIB : 2 * MIB]), ("empty", torch.zeros(0))])
    memory[:MIB] = 1
    memory[2 * MIB :] = 1
    glance.look_again()
    assert glance.changed() is None


def test_not_a_number_is_no_change() -> None:
    glance = Glance([("w", torch.full((10,), float("nan")))])
    glance.look_again()
    assert glance.changed() is None


def test_with_nothing_to_look_at_nothing_changes() -> None:
    glance = Glance([("empty", torch.zeros(0)), ("long", torch.zeros(3, dtype=torch.complex128))])
    glance.look_again()
    assert glance.changed() is None


@pytest.fixture
def big() -> mmap.mmap:
    """Memory of several pieces; none of it is ever touched."""
    return mmap.mmap(-1, 3 * streams.PIECE_BYTES)


def test_memory_is_registered_once_piece_by_piece(big: mmap.mmap) -> None:
    stream, pinning = ThreadStream(), Pinning()
    for _ in range(2):
        pinning.pin("slot", big, stream)
    assert sum(stream.registered.values()) == len(big)
    assert max(stream.registered.values()) <= streams.PIECE_BYTES
    assert len(stream.registered) >= 3
    pinning.close()
    assert not stream.registered


def test_a_driver_that_refuses_midway_keeps_nothing_and_is_not_asked_again(
    big: mmap.mmap, caplog: pytest.LogCaptureFixture
) -> None:
    stream, pinning = ThreadStream(), Pinning()
    stream.refuses_after = 2
    pinning.pin("slot", big, stream)
    assert not stream.registered
    stream.refuses_after = None
    pinning.pin("slot", big, stream)
    pinning.pin("other", mmap.mmap(-1, 4096), stream)
    assert not stream.registered
    assert len(caplog.records) == 1
