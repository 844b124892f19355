"""Whoever leaves, in whatever way and at whatever moment, holds nothing and disturbs nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ckptd import aio, errors, fetching
from ckptd.client import Client
from ckptd.values import Progress
from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.partials import CHUNK_BYTES, landed_bytes
from fakes.waiting import eventually

STREAMS = 2


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """A daemon whose flights end with their last passenger."""
    with Daemon(short_path, linger_s=0, streams=STREAMS, streams_max=STREAMS) as running:
        yield running


def leases(client: Client) -> int:
    return sum(blob.leases for blob in client.blobs())


def lease_files(daemon: Daemon) -> list[Path]:
    return list((daemon.state_dir / "cache" / "leases").glob("*.json"))


class Gate:
    """Keeps the answer of a fetch from its caller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.open = threading.Event(), threading.Event()
        monkeypatch.setattr(fetching, "require_same_file", self._wait)

    def _wait(self, _message: object) -> None:
        self.arrived.set()
        assert self.open.wait(30)


@pytest.mark.parametrize("way", ["fetch", "open"])
async def test_cancelled_while_it_flies_it_holds_nothing(
    way: str, daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    client = aio.Client(daemon.socket)
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            if way == "fetch":
                await client.fetch(origin.url("model"))
            async with client.open(origin.url("model")):
                raise AssertionError

        tasks.start_soon(ask)
        await anyio.to_thread.run_sync(origin.held.wait, 30)
        tasks.cancel_scope.cancel()
    await anyio.to_thread.run_sync(eventually, lambda: not daemon.client().status().flights)
    assert lease_files(daemon) == []
    origin.release()


@pytest.mark.parametrize("way", ["fetch", "open"])
async def test_cancelled_when_the_answer_is_there_and_nobody_has_seen_it_it_holds_nothing(
    way: str, daemon: Daemon, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("model", b"data")
    gate, client = Gate(monkeypatch), aio.Client(daemon.socket)
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            if way == "fetch":
                await client.fetch(origin.url("model"))
            async with client.open(origin.url("model")):
                raise AssertionError

        tasks.start_soon(ask)
        await anyio.to_thread.run_sync(gate.arrived.wait, 30)
        assert [blob.leases for blob in await client.blobs()] == [1]
        tasks.cancel_scope.cancel()
    assert [blob.leases for blob in await client.blobs()] == [0]
    gate.open.set()
    assert lease_files(daemon) == []


def test_a_callback_that_raises_ends_the_fetch_and_its_lease(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        daemon.client().fetch(origin.url("model"), on_progress=fail)
    eventually(lambda: not daemon.client().status().flights)
    origin.release()
    assert lease_files(daemon) == []


def test_what_another_call_of_the_process_holds_stays_held(
    daemon: Daemon, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    client.fetch(origin.url("model"))

    def fail(_message: object) -> None:
        raise errors.FailedPrecondition("they see different files")

    monkeypatch.setattr(fetching, "require_same_file", fail)
    with pytest.raises(errors.FailedPrecondition):
        client.fetch(origin.url("model"))
    assert leases(client) == 1


async def test_when_the_last_has_left_the_partial_stays_and_the_next_goes_on(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    content = data * 3
    origin.put("model", content)
    origin.hold(after_bytes=len(content) * 3 // 4)
    client = aio.Client(daemon.socket)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.fetch, origin.url("model"))
        await anyio.to_thread.run_sync(origin.held.wait, 30)
        (partial,) = (daemon.state_dir / "cache" / "partials").iterdir()
        landing = len(content) * 3 // 4 - STREAMS * CHUNK_BYTES  # the disk may take its time
        await anyio.to_thread.run_sync(eventually, lambda: landed_bytes(partial) >= landing)
        tasks.cancel_scope.cancel()
    await anyio.to_thread.run_sync(eventually, lambda: not daemon.client().status().flights)
    assert partial.exists()
    origin.release()
    path = await client.fetch(origin.url("model"))
    assert path.read_bytes() == content
    assert origin.sent_bytes <= len(content) + STREAMS * CHUNK_BYTES + 2
