"""Room is booked before the first byte, waited for, and refused with the numbers."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.values import FlightStatus
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fakes.require_real import need_programs, need_root
from fakes.running import ckptd
from fakes.tracing import tampered
from fakes.waiting import eventually

MIB = 1 << 20
NO_FALLOCATE = "fallocate:error=EOPNOTSUPP"


@pytest.fixture
def small(short_path: Path) -> Iterator[Daemon]:
    """A daemon with room for 100 MiB."""
    with Daemon(short_path, cache_bytes=100 * MIB, linger_s=0) as running:
        yield running


@contextmanager
def disk(path: Path, size_bytes: int) -> Iterator[Path]:
    need_root()
    mounted = path / "disk"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
    subprocess.run(["mount", *options, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


class Fetch:
    """A thread that fetches, and holds the file until told to leave."""

    def __init__(self, daemon: Daemon, url: str) -> None:
        self.has_it, self._leave = threading.Event(), threading.Event()
        self.error: errors.CkptdError | None = None
        self._client, self._url = daemon.client(), url
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.open(self._url):
                self.has_it.set()
                self._leave.wait(60)
        except errors.CkptdError as error:
            self.error = error

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(60)

    def failure(self) -> errors.CkptdError:
        self._thread.join(60)
        assert self.error is not None
        return self.error


def flight(daemon: Daemon, url: str) -> FlightStatus | None:
    flights = daemon.client().status().flights
    return next((flight for flight in flights if flight.object == url), None)


def waiting(daemon: Daemon, url: str) -> Callable[[], FlightStatus | None]:
    """Return a condition: *url* waits, and says why."""

    def found() -> FlightStatus | None:
        seen = flight(daemon, url)
        return seen if seen and seen.phase == "waiting" and "hold the rest" in seen.reason else None

    return found


def put(origin: Origin, **sizes: int) -> dict[str, str]:
    for name, mib in sizes.items():
        origin.put(name, bytes(mib * MIB))
    return {name: origin.url(name) for name in sizes}


def need_fallocate(path: Path) -> None:
    """Skip the test unless the filesystem of *path* can reserve space."""
    need_programs("fallocate")
    probe = path / "probe"
    done = subprocess.run(["fallocate", "-l", "4096", probe], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs a filesystem with fallocate: {done.stderr.decode()}")


def allocated_bytes(daemon: Daemon) -> int:
    """What the disk has given for bytes that are still on their way."""
    files = (daemon.state_dir / "cache" / "partials").glob("*/data")
    return sum(file.stat().st_blocks * 512 for file in files)


def test_who_fits_once_others_have_left_waits_and_says_for_whom(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, a=40, b=40, c=40)
    holders = [Fetch(small, url[name]) for name in "ab"]
    assert all(holder.has_it.wait(30) for holder in holders)
    third = Fetch(small, url["c"])
    seen = eventually(waiting(small, url["c"]))
    assert seen.cause == "quota"
    reason = seen.reason
    assert f"{40 * MIB} bytes are needed, {20 * MIB} are free of the quota" in reason
    assert "2 leases hold the rest" in reason
    holders[0].leave()
    assert third.has_it.wait(30)
    for one in (third, holders[1]):
        one.leave()


def test_who_can_never_fit_is_refused_at_once_with_the_numbers(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, a=40, big=101)
    with small.client().open(url["a"]):
        pass
    with pytest.raises(errors.ResourceExhausted) as caught, small.client().open(url["big"]):
        pass
    numbers = caught.value.need_bytes, caught.value.free_bytes, caught.value.evictable_bytes
    assert numbers == (101 * MIB, 60 * MIB, 40 * MIB)
    assert small.client().blobs()  # nothing was evicted in vain


def test_who_would_wait_for_itself_is_refused_at_once_and_told_so(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, a=60, b=60)
    client = small.client()
    client.fetch(url["a"])  # until this process ends
    with pytest.raises(errors.ResourceExhausted, match="waiting is in vain") as caught:
        client.fetch(url["b"])
    numbers = caught.value.need_bytes, caught.value.free_bytes, caught.value.evictable_bytes
    assert numbers == (60 * MIB, 40 * MIB, 0)
    assert f"{60 * MIB} bytes are held by leases of the very processes" in str(caught.value)


def test_a_directory_that_has_no_room_beside_its_own_files_is_refused_at_once(
    small: Daemon, origin: Origin
) -> None:
    put(origin, **{"m/a": 60, "m/b": 60})
    files = "".join(f'<a href="{name}">{name}</a>' for name in "ab")
    origin.put("m/", f"<h1>Index of /m/</h1>{files}".encode())
    with pytest.raises(errors.ResourceExhausted, match="waiting is in vain"):
        small.client().fetch(origin.url("m/"))


def test_who_holds_something_still_waits_for_what_others_hold(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, mine=20, others=60, b=60)
    holder = Fetch(small, url["others"])
    assert holder.has_it.wait(30)
    small.client().fetch(url["mine"])
    waiter = Fetch(small, url["b"])
    eventually(waiting(small, url["b"]))
    holder.leave()
    assert waiter.has_it.wait(30)
    waiter.leave()


def test_nobody_waits_for_ever(short_path: Path, origin: Origin) -> None:
    url = put(origin, a=60, b=60)
    with Daemon(short_path, cache_bytes=100 * MIB, wait_for_room_s=1) as daemon:
        holder = Fetch(daemon, url["a"])
        assert holder.has_it.wait(30)
        refused = Fetch(daemon, url["b"]).failure()
        assert isinstance(refused, errors.ResourceExhausted)
        assert "after 1 s of waiting" in str(refused)
        assert "1 lease hold" in str(refused)
        holder.leave()


def test_a_small_one_passes_who_waits_but_never_so_many_that_the_first_would_wait_longer(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, held=40, first=80, little=10, less=11)
    holder = Fetch(small, url["held"])
    assert holder.has_it.wait(30)
    first = Fetch(small, url["first"])
    eventually(waiting(small, url["first"]))
    little = Fetch(small, url["little"])
    assert little.has_it.wait(30)
    less = Fetch(small, url["less"])
    assert "1 came before" in eventually(waiting(small, url["less"])).reason
    holder.leave()
    assert first.has_it.wait(30)
    assert not less.has_it.is_set()
    first.leave()
    assert less.has_it.wait(30)
    little.leave()
    less.leave()


def test_who_leaves_the_line_lets_the_next_one_in(small: Daemon, origin: Origin) -> None:
    url = put(origin, held=40, first=80, next=50)
    holder = Fetch(small, url["held"])
    assert holder.has_it.wait(30)
    with pytest.raises(errors.DeadlineExceeded, match="hold the rest"):
        small.client().fetch(url["first"], timeout=4)
    next_one = Fetch(small, url["next"])
    assert next_one.has_it.wait(30)
    holder.leave()
    next_one.leave()


def test_a_file_that_is_open_or_mapped_is_not_evicted(small: Daemon, origin: Origin) -> None:
    url = put(origin, a=40, b=40, c=40)
    client = small.client()
    with client.open(url["a"]) as path:
        file = path.open("rb")
    with client.open(url["b"]):
        pass
    with client.open(url["c"]):
        pass
    assert {blob.object for blob in client.blobs()} == {url["a"], url["c"]}
    held = Fetch(small, url["c"])
    assert held.has_it.wait(30)
    fourth = Fetch(small, url["b"])
    assert "1 open file hold" in eventually(waiting(small, url["b"])).reason.replace(
        "1 lease and ", ""
    )
    file.close()
    assert fourth.has_it.wait(30)
    fourth.leave()
    held.leave()


def test_what_is_kept_is_pinned_though_its_process_has_ended_and_others_are_used_more(
    small: Daemon, origin: Origin
) -> None:
    url = put(origin, a=40, b=40, c=40)
    client = small.client()
    assert ckptd("fetch", "--keep", "90d", url["a"], env=small.env).returncode == 0
    for name in "bc":
        with client.open(url[name]):
            pass
    assert {blob.object for blob in client.blobs()} == {url["a"], url["c"]}


def test_a_file_with_a_name_elsewhere_is_not_evicted(
    small: Daemon, origin: Origin, short_path: Path
) -> None:
    url = put(origin, a=40, b=40, c=40)
    client = small.client()
    with client.open(url["a"]) as path:
        os.link(path, short_path / "linked")
    for name in "bc":
        with client.open(url[name]):
            pass
    assert {blob.object for blob in client.blobs()} == {url["a"], url["c"]}


def test_many_small_ones_go_together_down_to_the_low_watermark(
    small: Daemon, origin: Origin
) -> None:
    names = {f"n{number}": 5 for number in range(18)}
    for url in put(origin, **names).values():
        with small.client().open(url):
            pass
    kept = sum(blob.size_bytes for blob in small.client().blobs())
    assert kept == 75 * MIB  # 90 were over the high watermark


def test_the_disk_has_given_all_of_the_space_before_the_first_byte_comes(
    small: Daemon, origin: Origin, short_path: Path, data: bytes
) -> None:
    need_fallocate(short_path)
    origin.put("model", data)
    origin.hold()
    flying = Fetch(small, origin.url("model"))
    assert origin.held.wait(30)
    eventually(lambda: allocated_bytes(small) >= len(data))
    assert origin.sent_bytes == 0
    origin.release()
    assert flying.has_it.wait(30)
    flying.leave()


def test_two_flights_are_let_in_only_if_both_fit_where_nothing_can_be_reserved(
    short_path: Path, origin: Origin
) -> None:
    url = put(origin, a=40, b=40)
    with (
        disk(short_path, 64 * MIB) as mounted,
        Daemon(mounted, free_floor_bytes=0) as daemon,
        tampered(daemon.pid, NO_FALLOCATE),
    ):
        origin.hold(after_bytes=8 * MIB)
        first = Fetch(daemon, url["a"])
        assert origin.held.wait(30)
        second = Fetch(daemon, url["b"])
        seen = eventually(waiting(daemon, url["b"]))
        assert "1 fetch" in seen.reason
        assert seen.cause == "disk"
        origin.release()
        assert first.has_it.wait(30)
        first.leave()
        assert second.has_it.wait(30)
        second.leave()


@pytest.mark.parametrize("lasting", [None, Fault.NO_LENGTH])
def test_a_disk_that_others_fill_ends_the_flight_and_what_came_is_kept(
    lasting: Fault | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("a", data).lasting = lasting
    with (
        disk(short_path, 64 * MIB) as mounted,
        Daemon(mounted, free_floor_bytes=0) as daemon,
        tampered(daemon.pid, NO_FALLOCATE),
    ):
        origin.hold(after_bytes=24 * MIB)
        flying = Fetch(daemon, origin.url("a"))
        assert origin.held.wait(30)
        filler = mounted / "filler"
        fill(filler)
        origin.release()
        failure = flying.failure()
        assert isinstance(failure, errors.ResourceExhausted)
        assert "filled by others" in str(failure) or lasting is Fault.NO_LENGTH
        assert failure.need_bytes is not None
        assert failure.free_bytes is not None
        assert failure.evictable_bytes == 0
        assert daemon.client().blobs() == []
        filler.unlink()
        assert daemon.client().fetch(origin.url("a")).read_bytes() == data


def fill(path: Path) -> None:
    """Leave nothing free on the disk of *path*."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return
