"""The CRC32C of the whole follows from those of its pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store import crc
from ckptd_proto.crc import crc32c


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_pieces_make_the_whole(first: bytes, second: bytes) -> None:
    assert crc.combined(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_any_number_of_pieces_make_the_whole(pieces: list[bytes]) -> None:
    parts = [(crc32c(piece), len(piece)) for piece in pieces]
    assert crc.whole(parts) == crc32c(b"".join(pieces))


def test_pieces_of_real_size_make_the_whole() -> None:
    chunk, tail = bytes(range(256)) * (1 << 16), b"tail"
    parts = [(crc32c(chunk), len(chunk)), (crc32c(chunk), len(chunk)), (crc32c(tail), len(tail))]
    assert crc.whole(parts) == crc32c(chunk + chunk + tail)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**45), st.integers(0, 2**45))
def test_zeros_of_any_length_may_be_appended_in_any_steps(crc_: int, one: int, other: int) -> None:
    at_once = crc.combined(crc_, 0, one + other)
    assert crc.combined(crc.combined(crc_, 0, one), 0, other) == at_once


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, expected: int) -> None:
    assert crc32c(data) == crc32c(memoryview(bytearray(data))) == expected
    assert crc32c(data[3:], crc32c(data[:3])) == expected
