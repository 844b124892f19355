"""Bandwidth limits: kept by everything together, shown as the cause, changed while it runs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.values import DaemonStatus, FlightStatus
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.running import ckptd, python
from fakes.waiting import eventually

KB = 1000
MB = 1000 * KB


@contextmanager
def fetching(daemon: Daemon, *urls: str) -> Iterator[list[Path]]:
    """Fetch *urls* at once inside the block, and to the end when it is left well."""
    found: list[Path] = []
    client = daemon.client()
    threads = [
        threading.Thread(target=lambda url=url: found.append(client.fetch(url)), daemon=True)
        for url in urls
    ]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join(40)
    assert len(found) == len(urls)


def flights(daemon: Daemon) -> tuple[FlightStatus, ...]:
    return daemon.client().status().flights


def held(daemon: Daemon, count: int = 1) -> list[FlightStatus]:
    """Return *count* flights that a limit holds, once there are so many."""

    def found() -> list[FlightStatus]:
        ready = [each for each in flights(daemon) if each.cause == "limit" and each.done_bytes]
        return ready if len(ready) >= count else []

    return eventually(found)


def done_bytes(status: DaemonStatus) -> int:
    return sum(flight.done_bytes for flight in status.flights)


@pytest.mark.parametrize("way", [None, Fault.NO_RANGES], ids=["streams", "one reply"])
def test_a_limit_holds_a_fetch_says_so_and_can_be_lifted_at_once(
    short_path: Path, origin: Origin, data: bytes, way: Fault | None
) -> None:
    origin.put("model", data).lasting = way
    with (
        Daemon(short_path, max_bytes_per_s=2 * MB, stall_s=1) as daemon,
        fetching(daemon, origin.url("model")) as found,
    ):
        (flight,) = held(daemon)
        assert flight.reason == "held to 2 MB/s by max_bytes_per_s"
        assert "held to 2 MB/s" in ckptd("status", env=daemon.env).stdout
        done = ckptd("config", "set", "max_bytes_per_s", "none", env=daemon.env)
        assert (done.returncode, done.stdout) == (0, "max_bytes_per_s = none\n"), done.stderr
    assert found[0].read_bytes() == data


def test_all_streams_flights_and_ways_together_keep_to_it(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    for name, way in (("a", None), ("b", None), ("c", Fault.NO_RANGES)):
        origin.put(name, data).lasting = way
    rate = 3 * MB
    with Daemon(short_path, max_bytes_per_s=rate) as daemon:
        client = daemon.client()
        before = client.status()
        with fetching(daemon, *map(origin.url, "abc")):
            held(daemon, 3)
            for _ in range(3):
                goal = done_bytes(client.status()) + MB
                now = eventually(
                    lambda goal=goal: (
                        status if done_bytes(status := client.status()) > goal else None
                    )
                )
                # in flight at any moment: a burst, a piece of each stream, a block of the reply
                slack = rate * 0.1 + 17 * rate * 0.05 + (1 << 18)
                assert done_bytes(now) <= rate * (now.uptime_s - before.uptime_s) + slack
            client.configure({"max_bytes_per_s": None})


@pytest.mark.parametrize("way", [None, Fault.NO_RANGES], ids=["streams", "one reply"])
def test_being_held_is_no_stall(short_path: Path, origin: Origin, way: Fault | None) -> None:
    """Each piece waits for longer than a stream may be silent."""
    origin.put("model", bytes(17 << 20)).lasting = way
    with (
        Daemon(short_path, max_bytes_per_s=2 * KB, stall_s=0.2) as daemon,
        fetching(daemon, origin.url("model")),
    ):
        client = daemon.client()
        eventually(lambda: [each for each in flights(daemon) if each.cause == "limit"])
        asked = 1 if way else 5  # a connection for each part of a chunk
        eventually(lambda: len(origin.bodies("model")) == asked)
        began = client.status().uptime_s
        eventually(lambda: client.status().uptime_s > began + 2)  # longer than the end game looks
        assert len(origin.bodies("model")) == asked
        client.configure({"max_bytes_per_s": None})


@pytest.mark.parametrize("size_bytes", [4 * MB, 12 * MB], ids=["small", "streams"])
def test_what_somebody_waits_for_comes_before_what_is_prefetched_by_many_streams(
    short_path: Path, origin: Origin, size_bytes: int
) -> None:
    origin.put("big", bytes(256 << 20))
    origin.put("wanted", bytes(size_bytes))
    with Daemon(short_path, max_bytes_per_s=4 * MB, linger_s=0) as daemon:
        client = daemon.client()
        client.prefetch([origin.url("big")])
        eventually(lambda: [each for each in held(daemon) if each.streams > 4])
        (before,) = held(daemon)
        client.fetch(origin.url("wanted"))
        (after,) = held(daemon)
        assert after.done_bytes - before.done_bytes < size_bytes / 2
        client.withdraw([origin.url("big")])


def test_two_that_are_waited_for_share_a_limit_evenly_however_many_streams_they_have(
    short_path: Path, origin: Origin
) -> None:
    origin.put("big", bytes(256 << 20))
    origin.put("wanted", bytes(8 * MB))
    with Daemon(short_path, max_bytes_per_s=4 * MB) as daemon:
        client = daemon.client()
        with fetching(daemon, origin.url("big")):
            eventually(lambda: [each for each in held(daemon) if each.streams > 4])
            (before,) = held(daemon)
            client.fetch(origin.url("wanted"))
            (after,) = held(daemon)
            assert after.done_bytes - before.done_bytes < 2 * 8 * MB
            client.configure({"max_bytes_per_s": None})


def test_what_is_late_by_a_limit_is_neither_split_nor_raced(
    short_path: Path, origin: Origin
) -> None:
    """Each part moves and is seconds from its end, and there are seats for helpers."""
    origin.put("model", bytes(17 << 20))
    with (
        Daemon(short_path, max_bytes_per_s=2 * MB) as daemon,
        fetching(daemon, origin.url("model")),
    ):
        client = daemon.client()
        held(daemon)
        began = client.status().uptime_s
        eventually(lambda: client.status().uptime_s > began + 3)  # longer than the end game looks
        assert len(origin.bodies("model")) == 5  # a connection for each part
        client.configure({"max_bytes_per_s": None})


def test_a_source_has_a_limit_of_its_own(short_path: Path, origin: Origin, data: bytes) -> None:
    origin.put("slow", data)
    origin.put("fast", data)
    elsewhere = f"http://localhost:{origin.port}/fast"
    with Daemon(short_path, source_max_bytes_per_s=f"127.0.0.1:{origin.port}={2 * MB}") as daemon:
        client = daemon.client()
        with fetching(daemon, origin.url("slow")):
            (flight,) = held(daemon)
            assert flight.reason == (
                f"held to 2 MB/s by source_max_bytes_per_s of 127.0.0.1:{origin.port}"
            )
            assert client.fetch(elsewhere).read_bytes() == data
            assert flights(daemon), "the slow one is done already"
            client.configure({f"source_max_bytes_per_s.127.0.0.1:{origin.port}": None})


def test_a_cancelled_fetch_leaves_the_limit_at_once(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    with Daemon(short_path, max_bytes_per_s=KB, linger_s=0) as daemon:
        with pytest.raises(
            errors.DeadlineExceeded, match=r"held to 0\.001 MB/s by max_bytes_per_s"
        ):
            daemon.client().fetch(origin.url("model"), timeout=3)
        eventually(lambda: not flights(daemon))


def test_the_settings_are_shown_and_changed_for_the_life_of_the_daemon(short_path: Path) -> None:
    secret = "http://user:hunter2@proxy.example:3128"
    with Daemon(short_path, proxy=secret, stall_s=7) as daemon:
        shown = json.loads(ckptd("config", "--json", env=daemon.env).stdout)
        assert (shown["stall_s"], shown["max_bytes_per_s"]) == (7, None)
        assert shown["socket"] == str(daemon.socket)
        assert shown["proxy"] == "http://proxy.example:3128/"
        assert "hunter2" not in ckptd("config", env=daemon.env).stdout
        ckptd("config", "set", "source_max_bytes_per_s.Models.Example", "1.5MB", env=daemon.env)
        settings = daemon.client().configure({"max_bytes_per_s": 5000})
        assert settings["max_bytes_per_s"].value == 5000
        assert settings["source_max_bytes_per_s"].value == {"models.example": 1_500_000}
        assert "5000" in ckptd("config", env=daemon.env).stdout
        daemon.stop()
        daemon.start()
        assert daemon.client().settings()["max_bytes_per_s"].value is None


def test_what_cannot_be_changed_is_refused_with_what_can(daemon: Daemon) -> None:
    can = "max_bytes_per_s and source_max_bytes_per_s.HOST can be changed"
    for key, value, code, sentence in (
        ("no_such", "5", 2, f"there is no setting no_such; {can}"),
        ("stall_s", "5", 4, f"stall_s is settled when the daemon starts; while it runs only {can}"),
        ("source_max_bytes_per_s", "5", 4, can),
        ("max_bytes_per_s", "0", 2, "must be a number of bytes per second above 0, or none"),
        ("max_bytes_per_s", "fast", 2, "'fast' is no rate; write 50000000, 50MB, 1.5GB or none"),
    ):
        done = ckptd("config", "set", key, value, env=daemon.env)
        assert (done.returncode, done.stdout) == (code, "")
        assert sentence in done.stderr


def test_one_wrong_change_changes_nothing(daemon: Daemon) -> None:
    with pytest.raises(errors.FailedPrecondition):
        daemon.client().configure({"max_bytes_per_s": 5000, "retries": 1})
    assert daemon.client().settings()["max_bytes_per_s"].value is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_changes_nothing(short_path: Path) -> None:
    short_path.chmod(0o755)
    code = """
import os, ckptd.client
from ckptd import errors
ckptd.__version__  # loads what another user may not read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    ckptd.client.Client().configure({"max_bytes_per_s": 1})
except errors.PermissionDenied as error:
    print(error)
"""
    with Daemon(short_path / "d", allow_uids=65534) as daemon:
        told = python(code, env=daemon.env)
        assert "only user 0, whose daemon this is, may change its settings" in told
        assert daemon.client().settings()["max_bytes_per_s"].value is None
