"""What is learned of a blob is of that very file, and brings no forgotten one back."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from ckptd_daemon.store import durable, scrub, sums
from ckptd_daemon.store.blob import NOTE, Blob, Verification
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import PAGE_BYTES, Partial
from ckptd_daemon.store.scrub import Scrubber
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

CHUNK_BYTES = PAGE_BYTES
DATA = os.urandom(2 * CHUNK_BYTES + 10)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path)
    store.load()
    return store


@pytest.fixture
def blob(store: BlobStore) -> Blob:
    header = Header("1d", "title", "v1", "model", len(DATA), CHUNK_BYTES, is_resumable=True)
    partial = Partial(store.partial_path("key"), header)
    partial.open()
    for index in range(header.chunk_count):
        start, end = header.extent(index)
        chunk = DATA[start:end]
        padded = bytearray(chunk.ljust(CHUNK_BYTES, b"\0"))
        partial.write(memoryview(padded), len(chunk), start)
        partial.record(index, crc32c(chunk), len(chunk))
    return store.publish(partial, len(DATA), None, Verification.TRANSPORT)


def rot(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"\0" + DATA[1:])


def replace_sound(path: Path) -> None:
    """Have another file take its name, as when it is evicted and fetched again."""
    other = path.with_name("other")
    other.write_bytes(DATA)
    other.rename(path)


def test_a_sha256_that_is_learned_may_vouch_for_the_blob(store: BlobStore, blob: Blob) -> None:
    learned = store.learn_sha256(blob, SHA256)
    assert learned is store.find("key")
    assert learned is not None
    assert (learned.sha256, learned.verification) == (SHA256, Verification.SHA256)


def test_bytes_that_rotted_here_are_set_aside_and_no_word_on_who_published_them(
    store: BlobStore, blob: Blob
) -> None:
    rot(blob.path)
    assert store.learn_sha256(blob, SHA256) is None
    assert store.find("key") is None
    assert len(store.quarantined()) == 1


def test_a_file_that_took_the_name_meanwhile_gets_no_others_hash(
    store: BlobStore, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(data: memoryview, crc: int = 0) -> int:
        replace_sound(blob.path)
        return crc32c(data, crc)

    rot(blob.path)
    monkeypatch.setattr(sums, "crc32c", replacing)
    assert store.learn_sha256(blob, SHA256) is None
    assert store.find("key") is blob
    assert store.quarantined() == []


def test_a_blob_that_is_forgotten_while_it_is_touched_stays_forgotten(
    store: BlobStore, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetting() -> float:
        store.forget("key")
        return 1.0

    monkeypatch.setattr(time, "time", forgetting)
    assert store.touch(blob) is None
    assert store.find("key") is None


@pytest.mark.parametrize("note", [b"", b"{", b'{"format": 1}'], ids=["empty", "cut", "unchecked"])
def test_a_note_that_was_damaged_meanwhile_is_set_aside(
    note: bytes, store: BlobStore, blob: Blob
) -> None:
    (blob.path.parent / NOTE).write_bytes(note)
    assert store.learn_sha256(blob, SHA256) is None
    assert store.find("key") is None
    assert len(store.quarantined()) == 1


async def test_a_daemon_out_of_descriptors_finds_no_damage(
    store: BlobStore, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> tuple[int, bool]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(durable, "open_direct", none_left)
    with pytest.raises(errors.Unavailable, match="Too many open files"):
        await Scrubber(store).check(blob)
    assert store.find("key") is blob
    assert store.quarantined() == []


async def test_what_was_fetched_again_while_it_was_read_back_is_left_alone(
    store: BlobStore, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(data: memoryview, crc: int = 0) -> int:
        replace_sound(blob.path)
        return crc32c(data, crc)

    rot(blob.path)
    monkeypatch.setattr(scrub, "crc32c", replacing)
    assert await Scrubber(store).check(blob) is None
    assert store.find("key") is blob
    assert store.quarantined() == []


async def test_a_chunk_that_the_disk_cannot_read_is_damaged(
    store: BlobStore, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def unreadable(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == CHUNK_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", unreadable)
        finding = await Scrubber(store).check(blob)
    assert finding is not None
    assert finding.damaged_chunks == (1,)
    assert store.find("key") is None


async def test_a_file_that_is_gone_is_damaged_as_a_whole(store: BlobStore, blob: Blob) -> None:
    blob.path.unlink()
    finding = await Scrubber(store).check(blob)
    assert finding is not None
    assert finding.damaged_chunks == (0, 1, 2)
