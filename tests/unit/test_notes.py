"""No damage of a note goes unnoticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store import notes

NOTE = {"format": 1, "crc32c": [1, 22, 333], "published_at": 1790000000.25, "sha256": None}
texts = st.text(max_size=8)
fields = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False)
)


@given(fields)
def test_what_is_written_comes_back(more: dict[str, object]) -> None:
    note = {"format": 1, **{k: v for k, v in more.items() if k not in {"format", notes.CHECK}}}
    written = notes.encode(note)
    assert notes.decode(written, format_=1) == note
    assert notes.encode(notes.decode(written, format_=1)) == written


def test_every_changed_byte_is_noticed() -> None:
    written = notes.encode(NOTE)
    for at in range(len(written)):
        for change in (1, 2, 4, 8, 0x55, 0x80):
            damaged = bytearray(written)
            damaged[at] ^= change
            with pytest.raises((ValueError, notes.FormatError)):
                notes.decode(bytes(damaged), format_=1)


def test_every_cut_is_noticed() -> None:
    written = notes.encode(NOTE)
    for length in range(len(written)):
        with pytest.raises(ValueError):
            notes.decode(written[:length], format_=1)


def test_a_note_of_another_format_is_that_and_not_damaged() -> None:
    with pytest.raises(notes.FormatError, match="has format 2"):
        notes.decode(b'{"format": 2, "whatever": "follows"}', format_=1)
