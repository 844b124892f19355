"""Seats: who has no use for one leaves it to others, whatever way its bytes come."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from ckptd_daemon.fetch.call import Request
from fakes.node import fetching
from fakes.origin import Fault, Origin
from fakes.waiting import until

ONE = {"streams": 1, "streams_max": 1, "stall_s": 600, "first_byte_s": 600}


def very_long(failures: int, jitter: float) -> float:
    return 600.0


async def test_a_flight_that_waits_before_it_asks_again_holds_no_seat(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.retry.delay_s", very_long)
    origin.put("bad", data).lasting = Fault.NONE
    origin.put("bad", data).faults = [Fault.HANG_UP]
    origin.put("good", data)
    async with fetching(short_path, **ONE) as node:
        with node.calling(origin.url("bad")) as call:
            await until(lambda: "closed without an answer" in call.progress().reason)
            assert (await node.fetch(origin.url("good"))).read_bytes() == data
            assert not call.has_ended


async def test_a_flight_that_is_refused_again_and_again_holds_no_seat_meanwhile(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.transfer.lane.delay_s", very_long)
    origin.put("bad", data).faults = [Fault.FORBID] * 2
    origin.put("good", data)
    async with fetching(short_path, **ONE) as node:
        with node.calling(origin.url("bad")) as call:
            await until(lambda: len(origin.bodies("bad")) == 2)
            assert (await node.fetch(origin.url("good"))).read_bytes() == data
            assert not call.has_ended


async def test_what_comes_the_general_way_for_nobody_makes_place_for_somebody(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("ahead", data).faults = [Fault.NO_LABEL] * 3  # no stream reads that
    origin.hold()
    with Origin() as other:
        other.put("model", data)
        async with fetching(short_path, **ONE) as node:
            await node.fetcher.prefetch(Request(origin.url("ahead"), keep_s=60), os.getuid())
            await until(lambda: len(origin.bodies("ahead")) == 4)
            assert (await node.fetch(other.url("model"))).read_bytes() == data
            origin.release()
            with anyio.fail_after(20):
                await node.fetcher.wait_idle()
            assert len(node.entries("blobs")) == 2


async def test_what_cannot_be_joined_keeps_its_seat(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("ahead", data, etag=None, last_modified=None)
    origin.hold(after_bytes=20 << 20)
    with Origin() as other:
        other.put("model", data)
        async with fetching(short_path, **ONE) as node:
            await node.fetcher.prefetch(Request(origin.url("ahead"), keep_s=60), os.getuid())
            await to_thread.run_sync(origin.held.wait, 20)
            with node.calling(other.url("model")) as call:
                await until(lambda: "in use by others" in call.progress().reason)
                origin.release()
                assert await call.wait(20)
    assert origin.sent_bytes < len(data) + (1 << 20), "it came once"
