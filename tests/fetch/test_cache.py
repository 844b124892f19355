"""What is kept, for whom, and what goes when the disk or the quota is full."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd import errors
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.waiting import eventually

HOLD = """
import sys, ckptd
print(ckptd.fetch(sys.argv[1], keep_s=float(sys.argv[2])), flush=True)
sys.stdin.read()
"""
MIB = 1 << 20


class Holder:
    """A process that fetches and then holds the file until it ends."""

    def __init__(self, daemon: Daemon, url: str, keep_s: float = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, url, str(keep_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=daemon.env,
            text=True,
        )
        assert self._process.stdout is not None
        self.path = Path(self._process.stdout.readline().strip())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def small(short_path: Path) -> Iterator[Daemon]:
    """A daemon whose cache holds two files of the tests, and not three."""
    with Daemon(short_path, cache_bytes=100 * MIB, wait_for_room_s=0) as running:
        yield running


def leases(daemon: Daemon) -> int:
    return sum(blob.leases for blob in daemon.client().blobs())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_full_quota_evicts_the_least_recently_used(
    small: Daemon, origin: Origin, data: bytes
) -> None:
    client = small.client()
    for name in ("a", "b", "c"):
        origin.put(name, data)
        with client.open(origin.url(name)):
            pass
    kept = {blob.object for blob in client.blobs()}
    assert kept == {origin.url("b"), origin.url("c")}


def test_a_leased_blob_is_never_evicted_and_goes_when_its_holder_has_died(
    small: Daemon, origin: Origin, data: bytes
) -> None:
    client = small.client()
    for name in ("a", "b", "c"):
        origin.put(name, data)
    holders = [Holder(small, origin.url(name)) for name in ("a", "b")]
    with pytest.raises(errors.ResourceExhausted) as caught, client.open(origin.url("c")):
        pass
    assert caught.value.need_bytes == len(data)
    assert caught.value.free_bytes is not None
    assert caught.value.free_bytes < len(data)
    assert all(holder.path.read_bytes() == data for holder in holders)
    for holder in holders:
        holder.end()
    eventually(lambda: leases(small) == 0)
    with client.open(origin.url("c")) as path:
        assert path.read_bytes() == data


def test_a_lease_survives_the_daemon_and_ends_with_its_holder(
    small: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    holder = Holder(small, origin.url("a"))
    small.kill()
    small.start()
    client = small.client()
    (blob,) = client.blobs()
    assert blob.leases == 1
    with pytest.raises(errors.FailedPrecondition, match="1 lease"):
        client.remove_blob(blob.key)
    holder.end()
    eventually(lambda: leases(small) == 0)
    assert client.remove_blob(blob.key) == len(data)
    assert client.blobs() == []
    eventually(lambda: not list((small.state_dir / "cache" / "leases").iterdir()))


def test_a_holder_that_died_while_the_daemon_was_away_holds_nothing(
    small: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    holder = Holder(small, origin.url("a"))
    small.kill()
    holder.end()
    small.start()
    eventually(lambda: leases(small) == 0)


def test_keep_outlives_the_holder(small: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("a", data)
    holder = Holder(small, origin.url("a"), keep_s=600)
    holder.end()
    eventually(lambda: small.client().status().sessions == 1)
    assert leases(small) == 1
    small.kill()
    small.start()
    assert leases(small) == 1


def test_a_file_in_use_keeps_its_bytes_when_its_blob_goes(
    small: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    client = small.client()
    with client.open(origin.url("a")) as path:
        file = path.open("rb")
    (blob,) = client.blobs()
    client.remove_blob(blob.key)
    with file:
        assert file.read() == data


def test_a_damaged_blob_is_set_aside_and_fetched_anew(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    client = daemon.client()
    path = client.fetch(origin.url("a"))
    os.truncate(path, 1000)
    assert client.fetch(origin.url("a")).read_bytes() == data
    assert not list((daemon.state_dir / "cache" / "quarantine").iterdir())  # of no more use


def test_a_blob_damaged_while_the_daemon_was_away_is_not_served(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    path = daemon.client().fetch(origin.url("a"))
    daemon.kill()
    os.truncate(path, 1000)
    daemon.start()
    assert daemon.client().blobs() == []


def test_a_wrong_hash_publishes_nothing(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("a", data)
    with pytest.raises(errors.DataLoss, match=sha256(data)):
        daemon.client().fetch(origin.url("a"), sha256="0" * 64)
    assert daemon.client().blobs() == []
    assert not list((daemon.state_dir / "cache" / "partials").iterdir())


@pytest.mark.parametrize("lasting", [None, Fault.NO_RANGES, Fault.NO_LENGTH])
def test_the_right_hash_is_what_the_blob_was_verified_by(
    lasting: Fault | None, daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data).lasting = lasting
    path = daemon.client().fetch(f"{origin.url('a')}#sha256={sha256(data)}")
    assert path.read_bytes() == data
    (blob,) = daemon.client().blobs()
    assert (blob.sha256, blob.verification) == (sha256(data), "sha256")


def test_bytes_that_are_known_by_their_hash_are_not_fetched_again(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    path = daemon.client().fetch(origin.url("a"), sha256=sha256(data))
    sent = origin.sent_bytes
    assert daemon.client().fetch("http://127.0.0.1:9/other", sha256=sha256(data)) == path
    assert origin.sent_bytes == sent


def test_a_cached_blob_is_hashed_late_and_a_wrong_statement_costs_one_fetch_more(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    client = daemon.client()
    path = client.fetch(origin.url("a"))
    sent = origin.sent_bytes
    assert client.fetch(origin.url("a"), sha256=sha256(data)) == path
    assert origin.sent_bytes == sent
    with pytest.raises(errors.DataLoss, match="not the stated"):
        client.fetch(origin.url("a"), sha256="0" * 64)
    assert origin.sent_bytes == sent  # it is known what it is
    origin.put("b", data)
    path = client.fetch(origin.url("b"))
    for stated in "0", "1":
        with path.open("rb") as held:
            with pytest.raises(errors.DataLoss, match=r"not the stated .* fetched twice") as caught:
                client.fetch(origin.url("b"), sha256=stated * 64)
            assert held.read() == path.read_bytes() == data
        assert caught.value.id
        (key,) = [blob.key for blob in client.blobs() if blob.object == origin.url("b")]
        assert f"`ckptd cache rm --force {key}`" in str(caught.value)
        assert origin.sent_bytes - sent < 2.5 * len(data)


def test_offline_answers_from_the_cache_or_not_at_all(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("a", data)
    client = daemon.client()
    with pytest.raises(errors.NotFound, match="not in the cache"):
        client.fetch(origin.url("a"), offline=True)
    assert origin.requests == []
    path = client.fetch(origin.url("a"))
    asked = len(origin.requests)
    assert client.fetch(origin.url("a"), offline=True) == path
    assert len(origin.requests) == asked


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("lasting", [None, Fault.NO_RANGES, Fault.NO_LENGTH])
def test_a_full_disk_is_an_error_with_the_numbers(
    lasting: Fault | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    disk = short_path / "d"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    try:
        origin.put("a", data).lasting = lasting
        with Daemon(disk, free_floor_bytes=0) as daemon:
            with pytest.raises(errors.ResourceExhausted) as caught:
                daemon.client().fetch(origin.url("a"))
            assert caught.value.need_bytes is not None
            assert caught.value.free_bytes is not None
            assert caught.value.free_bytes < caught.value.need_bytes
            small = origin.put("small", data[: 4 * MIB])
            assert daemon.client().fetch(origin.url("small")).read_bytes() == small.data
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
