"""A fetch says what it waits for, and `ckptd status` shows it: the network, the disk, the hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptd.values import FlightStatus
from ckptd_daemon.transfer import verify
from ckptd_daemon.transfer.progress import Cause, Phase
from fakes.daemon import Daemon
from fakes.node import FETCH_S
from fakes.node import fetching as running
from fakes.origin import Fault, Origin
from fakes.running import ckptd
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually, until

MS = 1000
SLOWS = f"delay_enter={100 * MS}"
WAYS = pytest.mark.parametrize("way", [None, Fault.NO_RANGES], ids=["streams", "one reply"])


@contextmanager
def fetching(daemon: Daemon, origin: Origin, content: bytes) -> Iterator[None]:
    """Fetch `model`, which is *content*, inside the block, and to the end when it is left."""
    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(daemon.client().fetch, origin.url("model"), timeout=50)
        yield
        assert fetch.result().read_bytes() == content


@contextmanager
def writing(daemon: Daemon, origin: Origin, content: bytes, injection: str) -> Iterator[None]:
    """Do so while *injection* befalls what is written of it, once some of it is here."""
    origin.hold(after_bytes=len(content) // 10)
    with fetching(daemon, origin, content):
        try:
            assert origin.held.wait(20)
            partials = daemon.state_dir / "cache" / "partials"
            (file,) = eventually(lambda: list(partials.glob("*/data")))
            with tampered(daemon.pid, f"pwrite64:{injection}", on=[file]):
                origin.release()
                yield
        finally:
            origin.release()


def flight(daemon: Daemon, cause: str, words: str) -> FlightStatus:
    """The only one, once it names *cause* in such *words*."""

    def found() -> list[FlightStatus]:
        flights = daemon.client().status().flights
        return [each for each in flights if each.cause == cause and words in each.reason]

    said = eventually(found, timeout_s=30)[0]
    assert said.phase == "downloading"
    return said


@WAYS
def test_a_disk_that_hangs_is_not_blamed_on_the_origin(
    way: Fault | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).lasting = way
    with (
        Daemon(short_path, streams=2, streams_max=2) as daemon,
        writing(daemon, origin, data, STALLS),
    ):
        flight(daemon, "disk", "nothing was written for")
        shown = ckptd("status", env=daemon.env).stdout
        assert "the disk takes its time: nothing was written for" in shown


@WAYS
def test_a_disk_that_is_slow_is_named_as_the_bottleneck(
    way: Fault | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data * 3).lasting = way
    with (
        Daemon(short_path, streams=1, streams_max=1) as daemon,
        writing(daemon, origin, data * 3, SLOWS),
    ):
        assert flight(daemon, "disk", "goes into writing").rate_bytes_per_s > 0


@WAYS
def test_an_origin_that_is_slow_is_told_from_the_disk(
    way: Fault | None, short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data, bytes_per_s=5e6).lasting = way  # `ckptd status` takes its time
    with (
        Daemon(short_path, streams=1, streams_max=1) as daemon,
        fetching(daemon, origin, data),
    ):
        said = flight(daemon, "network", "brings no more")
        assert said.rate_bytes_per_s > 0
        assert said.reason in ckptd("status", env=daemon.env).stdout


async def test_a_hash_that_takes_longer_than_the_bytes_is_named(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_hash, update = threading.Event(), verify._update

    def late(*arguments: Any) -> None:
        may_hash.wait(30)
        update(*arguments)

    monkeypatch.setattr(verify, "_update", late)
    origin.put("model", data)
    async with running(short_path) as node:
        with node.calling(origin.url("model"), hashlib.sha256(data).hexdigest()) as call:
            await until(lambda: call.progress().cause is Cause.HASH)
            assert call.progress().phase is Phase.VERIFYING
            may_hash.set()
            assert await call.wait(FETCH_S)
