from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from anyio import CapacityLimiter

from ckptd_daemon.fetch.call import Call, Request
from ckptd_daemon.fetch.lending import GoneError, Lender
from ckptd_daemon.sessions import Process
from ckptd_daemon.store import blobs, notes
from ckptd_daemon.store.blob import FORMAT, NOTE, Blob
from ckptd_daemon.store.blobs import BlobStore

KEY = "ab" * 20


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A cache of one blob."""
    home = tmp_path / "blobs" / KEY[:2] / KEY
    home.mkdir(parents=True)
    (home / "model").write_bytes(b"data")
    note = {
        "format": FORMAT,
        "object": "http://origin/model",
        "title": "http://origin/model",
        "version": "1",
        "name": "model",
        "size_bytes": 4,
        "sha256": None,
        "verification": "transport",
        "chunk_bytes": 1 << 20,
        "crc32c": [0],
        "published_at": 1.0,
    }
    (home / NOTE).write_bytes(notes.encode(note))
    found = BlobStore(tmp_path)
    found.load()
    return found


def the(store: BlobStore) -> Blob:
    (blob,) = store
    return blob


def used(store: BlobStore) -> Blob:
    assert store.use(the(store)) is not None
    return the(store)


def test_what_was_used_lately_is_handed_over_at_once_and_counts_as_used(store: BlobStore) -> None:
    assert store.glance(the(store)) is None  # not by this process
    before = used(store)
    found = store.glance(before)
    assert found == before.path.stat()
    assert the(store).used_at > before.used_at
    assert the(store).noted_at == before.noted_at


def test_use_is_written_down_again_after_a_while(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = used(store)
    assert store.glance(blob) is not None
    monkeypatch.setattr(blobs, "NOTED_S", 0)
    assert store.glance(the(store)) is None


def test_another_user_is_let_in_before_it_is_handed_over(store: BlobStore) -> None:
    assert store.glance(used(store), for_others=True) is None


@pytest.mark.parametrize("damage", ["shorter", "gone", "forgotten"])
def test_what_is_not_what_was_published_is_not_handed_over(store: BlobStore, damage: str) -> None:
    blob = used(store)
    if damage == "shorter":
        blob.path.write_bytes(b"dat")
    elif damage == "gone":
        blob.path.unlink()
    else:
        store.forget(blob.key)
    assert store.glance(blob) is None


async def test_a_crowd_that_waited_for_it_is_handed_it_without_a_thread_for_each(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = cast(Any, None)
    lender = Lender(store, nothing, nothing, nothing, CapacityLimiter(1))
    call = Call(Request("http://origin/model"), Process(0, 0, 0))
    blob = used(store)
    with monkeypatch.context() as patched:
        patched.setattr(store, "check", None)
        assert (await lender.ready(call, KEY, None, None)).path == blob.path
    blob.path.write_bytes(b"other")
    with pytest.raises(GoneError):
        await lender.ready(call, KEY, None, None)
