"""What a host asks for, all heed who have business with it: batches of small files, too."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.transfer.openings import SMALL_BYTES
from ckptd_daemon.transfer.progress import Cause
from fakes.node import FETCH_S, Node, clean
from fakes.origin import Fault, File, Origin
from fakes.waiting import until
from fetch.test_small import fetch_many

COUNT = 20
AT_ONCE = 4
PAUSE_S = 2
NOTHING_LEFT = {"RateLimit-Remaining": "0", "RateLimit-Reset": str(PAUSE_S)}
FOUR = {"streams": AT_ONCE, "streams_max": AT_ONCE}


def put(origin: Origin, *first: Fault) -> list[str]:
    """Serve small files, *first* by the body that is asked for first; returns their names."""
    names, faults = [f"part-{number:02}" for number in range(COUNT)], list(first)
    for name in names:
        origin.put(name, content(name)).faults = faults
    return names


def content(name: str) -> bytes:
    return name.encode() * 1000


def left_s(node: Node, origin: Origin) -> float:
    """For how long nobody is to ask the origin."""
    return node.fetcher._means.brakes.left_s(origin.url(""))


async def fetch_until_braked(node: Node, origin: Origin, names: list[str]) -> None:
    """Fetch *names* in one go; no reply ends before the node knows that it is to pause."""
    origin.hold()
    async with anyio.create_task_group() as tasks:

        async def fetch() -> None:
            paths = await fetch_many(node, *map(origin.url, names))
            assert [path.read_bytes() for path in paths] == [content(name) for name in names]

        tasks.start_soon(fetch)
        await until(lambda: left_s(node, origin) > 0)
        origin.release()


def require_pause(origin: Origin) -> None:
    """Nobody asked after the first answer, but those who had asked before it came."""
    begun_at, *later = origin.asked_at
    early = [at for at in later if at < begun_at + PAUSE_S]
    assert len(early) < AT_ONCE, origin.requests[: 1 + len(early)]
    assert len(later) >= COUNT


async def test_after_one_refusal_in_a_batch_nobody_asks_for_as_long_as_it_says(
    short_path: Path, origin: Origin
) -> None:
    names = put(origin, Fault.THROTTLE)
    for file in map(origin.file, names):
        file.retry_after_s = PAUSE_S
    async with clean(short_path, origin, **FOUR) as node:
        await fetch_until_braked(node, origin, names)
    require_pause(origin)


async def test_after_one_reply_in_a_batch_that_says_nothing_is_left_nobody_asks_until_there_is(
    short_path: Path, origin: Origin
) -> None:
    names = put(origin, Fault.CHANGE)
    for file in map(origin.file, names):
        file.next_version = File(file.data, file.etag, headers=NOTHING_LEFT)
    async with clean(short_path, origin, **FOUR) as node:
        await fetch_until_braked(node, origin, names)
    require_pause(origin)


async def test_that_nothing_is_left_counts_though_the_reply_is_too_long_for_a_batch(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("long", data[: SMALL_BYTES + 1], headers=NOTHING_LEFT)
    origin.put("short", b"short")
    async with clean(short_path, origin, **FOUR) as node:
        origin.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch_many, node, origin.url("long"), origin.url("short"))
            await until(lambda: left_s(node, origin) > 0)  # before any byte has come
            origin.release()


async def test_after_a_small_file_whose_reply_says_nothing_is_left_nobody_asks_until_there_is(
    short_path: Path, origin: Origin
) -> None:
    file = origin.put("first", b"first")
    file.next_version = File(file.data, file.etag, headers=NOTHING_LEFT)
    file.faults = [Fault.CHANGE]  # only the body says so, and not the answer to the question
    origin.put("second", b"second")
    async with clean(short_path, origin, **FOUR) as node:
        await node.fetch(origin.url("first"))
        await node.fetch(origin.url("second"))
    asked = dict(zip((name for name, _ in origin.requests[1:3]), origin.asked_at[1:3], strict=True))
    assert asked["second"] >= asked["first"] + PAUSE_S


async def test_who_waits_for_a_seat_when_a_pause_begins_does_not_ask_when_it_gets_one(
    short_path: Path, origin: Origin
) -> None:
    origin.put("first", content("first")).faults = [Fault.DRIBBLE]
    origin.put("second", content("second"))
    async with clean(short_path, origin, streams=1, streams_max=1, stall_s=600) as node:
        with ExitStack() as leaving:
            leaving.enter_context(node.calling(origin.url("first")))
            await until(lambda: origin.bodies("first"))
            with node.calling(origin.url("second")) as call:
                await until(lambda: call.progress().cause is Cause.STREAMS)
                node.fetcher._means.brakes.hold(origin.url(""), PAUSE_S)
                braked_at = time.monotonic()
                leaving.close()
                assert await call.wait(FETCH_S)
                assert call.result().path.read_bytes() == content("second")
    assert len(origin.bodies("second")) == 1
    assert origin.asked_at[-1] >= braked_at + PAUSE_S


async def test_a_batch_that_begins_in_a_pause_does_not_even_connect(
    short_path: Path, origin: Origin
) -> None:
    names = put(origin)
    async with clean(short_path, origin, **FOUR) as node:
        node.fetcher._means.brakes.hold(origin.url(""), PAUSE_S)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch_many, node, *map(origin.url, names))
            counts = []

            def is_nearly_over() -> bool:
                count, left = origin.connections_max, left_s(node, origin)
                if left > 0:  # so it still was when they were counted
                    counts.append(count)
                return left < 0.5

            await until(is_nearly_over)
            assert set(counts) == {0}


@pytest.mark.parametrize("fault", [Fault.THROTTLE, Fault.UNAVAILABLE])
async def test_one_refusal_in_a_batch_halves_how_many_ask_the_host(
    fault: Fault, short_path: Path, origin: Origin
) -> None:
    names = put(origin)
    origin.file(names[0]).faults = [fault]
    async with clean(short_path, origin, **FOUR) as node:
        await fetch_many(node, *map(origin.url, names))
        learned = node.fetcher._means.hosts.learned()[host_of(origin.url(""))]
    assert learned == AT_ONCE // 2
