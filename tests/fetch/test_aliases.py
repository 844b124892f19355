"""What came without a SHA-256 gets one when all is quiet, and is found by it without asking."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.values import Blob
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.waiting import eventually

NOWHERE = "http://127.0.0.1:9/model"


@pytest.fixture
def quiet(short_path: Path) -> Iterator[Daemon]:
    """A daemon that hashes as soon as nothing goes on."""
    with Daemon(short_path, hash_after_s=0, drain_s=0) as running:
        yield running


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def only(daemon: Daemon) -> Blob:
    (blob,) = daemon.client().blobs()
    return blob


def test_a_stated_hash_is_answered_by_whatever_has_it_and_nobody_is_asked(
    quiet: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    path = quiet.client().fetch(origin.url("model"))
    blob = eventually(lambda: found if (found := only(quiet)).sha256 else None)
    assert (blob.sha256, blob.verification) == (sha256(data), "transport")
    asked = len(origin.requests)
    assert quiet.client().fetch(f"{NOWHERE}#sha256={sha256(data)}") == path
    assert len(origin.requests) == asked


def test_what_is_hashed_is_not_used_by_that_and_its_hash_is_kept(
    short_path: Path, origin: Origin
) -> None:
    origin.put("model", b"data")
    with Daemon(short_path, hash_after_s="inf") as daemon:
        path = daemon.client().fetch(origin.url("model"))
        assert only(daemon).sha256 is None
        daemon.kill()
        os.utime(path.with_name("blob.json"), (1000, 1000))
        daemon.settings["CKPTD_HASH_AFTER_S"] = "0"
        daemon.start()
        eventually(lambda: only(daemon).sha256 == sha256(b"data"))
        daemon.kill()
        daemon.start()
        assert (only(daemon).sha256, only(daemon).used_at) == (sha256(b"data"), 1000)


def test_it_waits_while_anything_is_fetched(quiet: Daemon, origin: Origin, data: bytes) -> None:
    client = quiet.client()
    with Origin() as other:
        origin.put("busy", data)
        other.put("model", data)
        origin.hold(after_bytes=1 << 20)
        client.prefetch([origin.url("busy")])
        assert origin.held.wait(30)
        client.fetch(other.url("model"))
        assert only(quiet).sha256 is None
        origin.release()
        eventually(lambda: [blob.sha256 for blob in client.blobs()] == [sha256(data)] * 2)


def test_rot_is_found_on_the_way_and_what_is_damaged_is_served_no_more(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    with Daemon(short_path, hash_after_s="inf", drain_s=0) as daemon:
        path = daemon.client().fetch(origin.url("model"))
        assert only(daemon).sha256 is None
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(bytes([data[0] ^ 0xFF]))
        path.chmod(0o444)
        daemon.kill()
        daemon.settings["CKPTD_HASH_AFTER_S"] = "0"
        daemon.start()
        eventually(lambda: daemon.client().blobs() == [])
        quarantine = daemon.state_dir / "cache" / "quarantine"
        eventually(lambda: len(list(quarantine.iterdir())) == 1)
