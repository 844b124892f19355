"""Memory is lent in turn, below one budget, and given back when nobody uses it."""

from __future__ import annotations

import gc
import mmap
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.store import buffers
from ckptd_daemon.store.buffers import BLOCK_BYTES, WARM_BYTES, Buffers


async def test_no_more_is_lent_than_the_budget_and_in_turn() -> None:
    lender, order = Buffers(3 * BLOCK_BYTES), []

    async def borrow(name: str, size_bytes: int) -> None:
        async with lender.lend(size_bytes):
            order.append(name)

    async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(lender.lend())
        async with lender.lend(BLOCK_BYTES // 2):
            tasks.start_soon(borrow, "large", BLOCK_BYTES)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(borrow, "small", 1)  # would fit, but came later
            await anyio.wait_all_tasks_blocked()
            assert order == []
    assert order == ["large", "small"]


async def test_a_block_is_as_long_as_asked_in_whole_pages() -> None:
    lender = Buffers(BLOCK_BYTES)
    for asked, length in ((1, mmap.PAGESIZE), (10_000, 12288), (1 << 40, BLOCK_BYTES)):
        async with lender.lend(asked) as block:
            assert len(block) == length


async def test_who_stops_waiting_holds_nobody_up() -> None:
    lender = Buffers(BLOCK_BYTES)
    async with anyio.create_task_group() as tasks, lender.lend(BLOCK_BYTES // 2):

        async def borrow() -> None:
            async with lender.lend():
                pass

        tasks.start_soon(borrow)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(30):
        async with lender.lend():
            pass


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


async def _used(lender: Buffers, blocks: int) -> None:
    """Have so many blocks at once, and write all over them."""
    async with AsyncExitStack() as stack:
        for _ in range(blocks):
            block = await stack.enter_async_context(lender.lend())
            block[:] = b"x" * len(block)


async def test_a_fetch_leaves_little_behind_and_that_is_what_the_next_one_gets() -> None:
    lender = Buffers(8 * BLOCK_BYTES)
    gc.collect()  # what earlier tests left
    before = _resident_bytes()
    await _used(lender, 8)
    left = _resident_bytes()
    assert WARM_BYTES - BLOCK_BYTES < left - before < WARM_BYTES + BLOCK_BYTES
    await _used(lender, WARM_BYTES // BLOCK_BYTES)
    assert _resident_bytes() - left < BLOCK_BYTES


async def test_what_nobody_uses_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "REST_S", 0)
    lender = Buffers(8 * BLOCK_BYTES)
    gc.collect()  # what earlier tests left
    before = _resident_bytes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lender.keep)
        await _used(lender, 8)
        assert _resident_bytes() - before > WARM_BYTES - BLOCK_BYTES
        await anyio.wait_all_tasks_blocked()
        assert _resident_bytes() - before < 2 * BLOCK_BYTES
        tasks.cancel_scope.cancel()
