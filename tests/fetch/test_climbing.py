"""How many streams a host gets follows what it brings and refuses, by every path, and is remembered."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.transfer.openings import SMALL_BYTES
from fakes.node import Node, fetching
from fakes.origin import Fault, Origin
from fakes.waiting import until

START = 2
PATHS = ["streams", "small", "one reply"]


def level(node: Node, origin: Origin) -> int:
    """What the node has learned of the origin."""
    return node.fetcher._means.hosts.learned()[host_of(origin.url(""))]


def put(origin: Origin, path: str, data: bytes, bytes_per_s: float = 0) -> list[str]:
    """Serve what comes by *path*, so much that all streams are busy; returns its URLs."""
    if path == "streams":
        origin.put("model", data * 4, bytes_per_s=bytes_per_s)
        return [origin.url("model")]
    names = [f"file{n}" for n in range(12)]
    for name in names:
        file = origin.put(name, data[: SMALL_BYTES - 1], bytes_per_s=bytes_per_s)
        file.lasting = Fault.NO_RANGES if path == "one reply" else None
    return [origin.url(name) for name in names]


@pytest.mark.parametrize("path", PATHS)
async def test_where_each_connection_is_slow_there_are_soon_more(
    path: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    urls = put(origin, path, data, bytes_per_s=2e6)
    async with fetching(short_path, streams=START, streams_max=16) as node:
        with ExitStack() as stack:
            calls = [stack.enter_context(node.calling(url)) for url in urls]
            await until(lambda: sum(call.progress().streams for call in calls) > START)


async def test_while_streams_wait_for_memory_no_more_of_them_are_tried(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Buffers, "is_short", True)
    (url,) = put(origin, "streams", data, bytes_per_s=2e6)
    async with fetching(short_path, streams=START, streams_max=16) as node:
        with node.calling(url) as call:
            await until(lambda: call.progress().done_bytes > 8e6)  # in two seconds
            assert call.progress().streams == START


@pytest.mark.parametrize("path", PATHS)
async def test_a_host_that_refuses_for_too_much_is_asked_by_half_as_many(
    path: str, short_path: Path, origin: Origin, data: bytes
) -> None:
    (url, *_) = put(origin, path, data)
    name = url.rpartition("/")[2]
    origin.file(name).faults = [Fault.THROTTLE]
    async with fetching(short_path, streams=8, streams_max=8) as node:
        await node.fetch(url)
        assert origin.file(name).faults == []
        assert level(node, origin) == 4


async def test_the_next_life_begins_with_what_this_one_has_learned(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    (url,) = put(origin, "streams", data)
    origin.file("model").faults = [Fault.THROTTLE]
    async with fetching(short_path, streams=8, streams_max=8) as node:
        await node.fetch(url)
    origin.put("other", data * 4)
    origin.hold()
    async with fetching(short_path, streams=8, streams_max=8, stall_s=600) as node:
        with node.calling(origin.url("other")) as call:
            await until(lambda: call.progress().streams >= 4)
            assert level(node, origin) == 4
            origin.release()
            assert await call.wait(20)
        assert origin.connections_max >= 4
