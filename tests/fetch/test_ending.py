"""Flights end promptly, whatever their streams wait for, and leave what they have."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.call import Request
from ckptd_daemon.fetch.fetcher import Fetcher
from ckptd_daemon.sessions import Process, Sessions
from fakes.origin import Fault, Origin


def config(root: Path) -> Config:
    return Config(
        socket=root / "s", state_dir=root / "state", linger_s=0, stall_s=600, connect_s=600
    )


async def test_streams_that_wait_for_a_silent_origin_end_with_the_last_caller(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.STALL] * 8
    me = Process.of_pid(os.getpid(), os.getuid())
    async with Sessions.open() as sessions, Fetcher.open(config(short_path), sessions) as fetcher:
        with fetcher.calling(Request(origin.url("model")), me) as call:
            while call.progress().done_bytes < len(data) // 4:
                await call.wait(0.01)
        with anyio.fail_after(30):
            await fetcher.wait_idle()
        assert len(list((short_path / "state" / "cache" / "partials").iterdir())) == 1
        assert fetcher.is_idle


async def test_a_daemon_that_stops_in_midflight_stops_promptly(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data).faults = [Fault.STALL] * 8
    me = Process.of_pid(os.getpid(), os.getuid())
    with anyio.fail_after(30):
        async with (
            Sessions.open() as sessions,
            Fetcher.open(config(short_path), sessions) as fetcher,
        ):
            with fetcher.calling(Request(origin.url("model")), me) as call:
                while call.progress().done_bytes < len(data) // 4:
                    await call.wait(0.01)
                assert fetcher.unfinished()
                assert not fetcher.is_idle
