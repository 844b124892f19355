"""A chunk counts only if it is what it is known to be."""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

HEADER = Header("1d", "http://host/model", 'etag "v1"', "model", 250, 100, is_resumable=True)
SMALL = replace(HEADER, size_bytes=100)


def test_a_chunk_with_another_checksum_than_the_known_one_does_not_land(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "p", HEADER)
    partial.open()
    partial.expected = {1: 7}
    partial.record(0, 5, 100)
    with pytest.raises(DamagedError, match="chunk 1"):
        partial.record(1, 8, 100)
    assert (partial.landed, partial.landed_bytes, partial.missing()) == ({0: 5}, 100, [1, 2])
    partial.record(1, 7, 100)
    assert partial.missing() == [2]
    partial.close()
    again = Partial(tmp_path / "p", HEADER)
    assert again.open() == {0: 5, 1: 7}
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 'etag "v2"'},
        {"size_bytes": 260},
        {"chunk_bytes": 50},
        {"object_id": "2e"},
        {"is_resumable": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_begun_of_something_else_is_not_gone_on_with(
    change: dict[str, object], tmp_path: Path
) -> None:
    partial = Partial(tmp_path / "p", HEADER)
    partial.open()
    partial.record(0, 5, 100)
    partial.close()
    other = Partial(tmp_path / "p", replace(HEADER, **change))
    assert other.open() == {}
    other.close()


def test_what_no_other_life_may_go_on_with_is_begun_anew(tmp_path: Path) -> None:
    for _ in range(2):
        partial = Partial(tmp_path / "p", replace(HEADER, is_resumable=False))
        assert partial.open() == {}
        partial.record(0, 5, 100)
        partial.close()


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(mmap.mmap(-1, 1 << 16))


def landed(partial: Partial, buffer: memoryview) -> None:
    """Let all of a partial land whose size is that of its one chunk."""
    size = partial.header.size_bytes or 0
    buffer[:size] = b"x" * size
    partial.write(buffer, size, 0)
    partial.record(0, crc32c(b"x" * size), size)


def test_what_else_the_memory_was_used_for_does_not_come_along(
    tmp_path: Path, buffer: memoryview
) -> None:
    buffer[:] = b"secret" * (len(buffer) // 6) + b"secr"
    partial = Partial(tmp_path / "p", SMALL)
    partial.open()
    landed(partial, buffer)
    partial.close()
    assert (tmp_path / "p" / "data").read_bytes() == b"x" * 100 + bytes(3996)


def test_a_partial_that_was_sealed_and_not_published_can_be_gone_on_with(
    tmp_path: Path, buffer: memoryview
) -> None:
    partial = Partial(tmp_path / "p", SMALL)
    partial.open()
    landed(partial, buffer)
    partial.seal(100)
    partial.close()  # and the daemon dies
    again = Partial(tmp_path / "p", SMALL)
    (claim,) = again.open().items()
    assert (tmp_path / "p" / "data").stat().st_mode & 0o777 == 0o600
    again.recheck(*claim, buffer)
    assert again.missing() == []
    again.close()


def test_a_chunk_that_the_disk_cannot_read_is_missing(
    tmp_path: Path, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "damaged").write_bytes(b"x" * 100)
    partial = Partial(tmp_path / "p", SMALL)
    partial.open()
    landed(partial, buffer)
    crc = partial.landed.pop(0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", unreadable)
        partial.recheck(0, crc, buffer)
        assert not partial.adopt(0, tmp_path / "damaged", crc, buffer)
        with pytest.raises(errors.Unavailable, match="the disk failed"):
            list(partial.blocks(0, 100, buffer))
    assert partial.missing() == [0]
    assert partial.adopt(0, tmp_path / "damaged", crc, buffer)
    partial.close()
