"""A block holds one lease, whatever happens to the call that asked; crowds are served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ckptd.fetching import Ask, opened
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.tracing import KILLS, tampered
from fakes.waiting import eventually

CROWD = 200
PROGRESS_PER_S = 200


def lease_files(daemon: Daemon) -> list[Path]:
    return list((daemon.state_dir / "cache" / "leases").glob("*.json"))


def test_a_fetch_that_was_repeated_holds_one_lease_and_gives_it_back(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        ask = Ask(origin.url("model"), keep_s=600)  # such a lease is synced
        with opened(lambda: client.connection, ask):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    assert daemon.process is not None
    leases = daemon.state_dir / "cache" / "leases"
    with tampered(daemon.pid, f"fsync:{KILLS}", on=[leases]):
        thread.start()  # the lease has its name; nobody was told of it
        assert daemon.process.wait(30) == -signal.SIGKILL
    daemon.kill()
    assert len(lease_files(daemon)) == 1
    daemon.start()
    assert entered.wait(30)
    (blob,) = client.blobs()
    assert blob.leases == 1
    leave.set()
    thread.join(30)
    assert client.blobs()[0].leases == 0
    assert lease_files(daemon) == []


def test_two_blocks_of_one_process_hold_two_leases(daemon: Daemon, origin: Origin) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    with client.open(origin.url("model")):
        with client.open(origin.url("model")):
            assert client.blobs()[0].leases == 2
        assert client.blobs()[0].leases == 1
        client.fetch(origin.url("model"))
    assert client.blobs()[0].leases == 1  # of the process, as long as it lives


def test_a_crowd_shares_one_flight_in_little_memory_and_is_told_a_bounded_number_of_times(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    with Daemon(short_path, stall_s=600) as daemon:  # the crowd takes its time to gather
        _gather(daemon, origin, data)


def _gather(daemon: Daemon, origin: Origin, data: bytes) -> None:
    client = daemon.client()
    told = threading.Semaphore(0)
    paths: list[Path] = []
    began = time.monotonic()

    def fetch() -> None:
        paths.append(client.fetch(origin.url("model"), on_progress=lambda _: told.release()))

    crowd = [threading.Thread(target=fetch) for _ in range(CROWD)]
    for thread in crowd:
        thread.start()
    eventually(lambda: [f.waiters for f in client.status().flights] == [CROWD], 30)
    memory = _anonymous_bytes(daemon.pid)
    origin.release()
    for thread in crowd:
        thread.join(30)
    count = 0
    while told.acquire(blocking=False):
        count += 1
    assert count <= 2 * CROWD + PROGRESS_PER_S * (time.monotonic() - began)
    assert len(paths) == CROWD
    assert len(set(paths)) == 1
    assert origin.has_sent_once(len(data))
    assert memory < 256 << 20


def _anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def test_what_a_process_holds_already_it_gets_again_without_a_word_or_a_write(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    first = client.fetch(origin.url("model"))
    (lease,) = lease_files(daemon)
    written = lease.stat()
    told: list[object] = []
    for _ in range(20):
        assert client.fetch(origin.url("model"), on_progress=told.append) == first
    assert (lease.stat().st_ino, lease.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert len(told) < 20  # a slow machine may have time for some
    client.fetch(origin.url("model"), keep_s=3600)
    assert json.loads(lease.read_text())["keep_s"] == 3600


def test_a_lease_that_was_taken_often_outlives_a_crash_and_ends_with_its_process(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    fetch = f"import ckptd; [ckptd.fetch({origin.url('model')!r}) for _ in range(3)]; input()"
    with subprocess.Popen(
        [sys.executable, "-c", fetch], env=daemon.env, stdin=subprocess.PIPE
    ) as process:
        eventually(lambda: len(daemon.client().blobs()) == 1)
        eventually(lambda: len(lease_files(daemon)) == 1)
        daemon.kill()
        daemon.start()
        assert daemon.client().blobs()[0].leases == 1
        process.communicate(b"\n", timeout=20)
    eventually(lambda: daemon.client().blobs()[0].leases == 0)
