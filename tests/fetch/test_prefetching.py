"""Prefetches are taken on without end, and brought a few at a time."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from ckptd_daemon.fetch.call import Request
from ckptd_daemon.fetch.fetcher import PREFETCHES_MAX
from fakes.node import clean
from fakes.origin import Origin

COUNT = PREFETCHES_MAX + 8


async def test_prefetches_take_turns(short_path: Path, origin: Origin) -> None:
    names = [f"f{index}" for index in range(COUNT)]
    for name in names:
        origin.put(name, b"data")
    origin.hold()
    async with clean(short_path, origin, first_byte_s=30, stall_s=30) as node:
        for name in names:
            node.fetcher.prefetch(Request(origin.url(name), keep_s=60), os.getuid())
        with anyio.fail_after(20):
            while len(node.fetcher.statistics().flights) < PREFETCHES_MAX:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert len(node.fetcher.statistics().flights) == PREFETCHES_MAX
            origin.release()
            await node.fetcher.wait_idle()
        assert len(node.fetcher.statistics().flights) == 0
        assert node.fetcher.statistics().blobs == COUNT
