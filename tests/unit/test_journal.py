"""A journal is believed up to its first damage, and never says what was not written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store.journal import FormatError, Header, encode_header, encode_record, parse
from ckptd_proto.crc import crc32c

HEADER = Header("1d", "http://host/model", 'etag "v1"', "model", 1000, 100, is_resumable=True)

records = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**32 - 1)), max_size=20)


def written(chunks: list[tuple[int, int]]) -> bytes:
    return encode_header(HEADER) + b"".join(encode_record(*chunk) for chunk in chunks)


@given(records)
def test_what_was_written_is_read(chunks: list[tuple[int, int]]) -> None:
    data = written(chunks)
    parsed = parse(data)
    assert parsed is not None
    assert (parsed.header, parsed.chunks, parsed.valid_bytes) == (HEADER, dict(chunks), len(data))


@given(records, st.data())
def test_a_torn_journal_says_what_its_whole_records_say(
    chunks: list[tuple[int, int]], draw: st.DataObject
) -> None:
    data = written(chunks)
    cut = draw.draw(st.integers(0, len(data)))
    parsed = parse(data[:cut])
    if parsed is None:
        assert cut < len(encode_header(HEADER))
    else:
        count = (cut - len(encode_header(HEADER))) // 12
        assert parsed.chunks == dict(chunks[:count])


@given(records, st.data())
def test_a_flipped_bit_invents_nothing(chunks: list[tuple[int, int]], draw: st.DataObject) -> None:
    data = bytearray(written(chunks))
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    data[bit // 8] ^= 1 << bit % 8
    parsed = parse(bytes(data))
    if parsed is not None:
        assert parsed.header == HEADER
        count = (parsed.valid_bytes - len(encode_header(HEADER))) // 12
        assert parsed.chunks == dict(chunks[:count])


@given(st.binary(max_size=300))
def test_any_bytes_are_either_a_journal_or_not(data: bytes) -> None:
    assert parse(data) is None


def test_another_format_is_told_apart_from_damage() -> None:
    line = b'{"format": 2, "whatever": 1}'
    with pytest.raises(FormatError, match="has format 2, and this version reads 1"):
        parse(b"%08x %b\nwhatever" % (crc32c(line), line))


def test_a_header_that_lacks_something_is_none() -> None:
    line = b'{"format": 1, "object": "http://host/model"}'
    assert parse(b"%08x %b\n" % (crc32c(line), line)) is None


@given(records, st.binary(max_size=60))
def test_rubbish_at_the_end_is_ignored(chunks: list[tuple[int, int]], tail: bytes) -> None:
    parsed = parse(written(chunks) + b"\0" + tail)
    assert parsed is not None
    assert parsed.chunks == dict(chunks)
    assert parsed.valid_bytes == len(written(chunks))
