"""Memory is lent in turn, below one budget, and given back when nobody uses it."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.store import buffers
from ckptd_daemon.store.buffers import (
    BLOCK_BYTES,
    HUGE_BYTES,
    REST_S,
    WARM_BYTES,
    Buffers,
    touch,
)

LINUX = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


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
            assert (order, lender.is_short) == ([], True)
    assert (order, lender.is_short) == (["large", "small"], False)


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


async def test_what_is_lent_is_counted_in_the_pages_that_it_takes() -> None:
    lender, lent = Buffers(2 * HUGE_BYTES), []

    async def borrow() -> None:
        async with lender.lend(1):
            lent.append("a byte")
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(borrow)
        await anyio.wait_all_tasks_blocked()
        assert len(lent) == 2
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("is_huge", [True, False])
async def test_memory_that_disks_read_is_of_huge_pages(*, is_huge: bool) -> None:
    async with Buffers(BLOCK_BYTES, is_huge=is_huge).lend() as block:
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        assert ("hg" in _flags(address)) == is_huge


def _flags(address: int) -> list[str]:
    """Return what the kernel has been told of the memory at *address*."""
    (found,) = (line for line in _mapping(address) if line.startswith("VmFlags:"))
    return found.split()[1:]


def _mapping(address: int) -> Iterator[str]:
    """Yield what the kernel says of the mapping at *address*."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_it = int(found[1], 16) <= address < int(found[2], 16)
        elif is_it:
            yield line


_libc = ctypes.CDLL(None, use_errno=True)


def _in_memory(address: int) -> int:
    """Return how much of the block at *address* is in memory."""
    pages = (ctypes.c_ubyte * (BLOCK_BYTES // mmap.PAGESIZE))()
    assert _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(BLOCK_BYTES), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


async def _used(lender: Buffers, blocks: int) -> set[int]:
    """Have so many blocks at once, and write all over them; returns where they were."""
    addresses = set()
    async with AsyncExitStack() as stack:
        for _ in range(blocks):
            block = await stack.enter_async_context(lender.lend())
            block[:] = b"x" * len(block)
            addresses.add(ctypes.addressof(ctypes.c_char.from_buffer(block)))
    return addresses


async def test_a_fetch_leaves_little_behind_and_that_is_what_the_next_one_gets() -> None:
    lender = Buffers(8 * BLOCK_BYTES)
    all_of_them = await _used(lender, 8)
    warm = {address for address in all_of_them if _in_memory(address)}
    assert sum(map(_in_memory, all_of_them)) == WARM_BYTES
    assert await _used(lender, WARM_BYTES // BLOCK_BYTES) == warm


async def test_what_nobody_uses_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "REST_S", 0)
    lender = Buffers(8 * BLOCK_BYTES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lender.keep)
        all_of_them = await _used(lender, 8)
        assert sum(map(_in_memory, all_of_them)) == WARM_BYTES
        await anyio.wait_all_tasks_blocked()
        assert sum(map(_in_memory, all_of_them)) == 0
        tasks.cancel_scope.cancel()


async def test_what_was_used_meanwhile_stays_for_another_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, wakings, woken = 0.0, list[float](), anyio.Semaphore(0)

    async def sleep_until(then: float) -> None:
        wakings.append(then)
        await woken.acquire()

    async def wake(then: float) -> None:
        nonlocal now
        now = then
        woken.release()
        await anyio.wait_all_tasks_blocked()

    monkeypatch.setattr(anyio, "sleep_until", sleep_until)
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    lender = Buffers(BLOCK_BYTES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lender.keep)
        (address,) = await _used(lender, 1)
        await anyio.wait_all_tasks_blocked()
        now = REST_S - 1
        await _used(lender, 1)
        await wake(REST_S)
        assert _in_memory(address) == BLOCK_BYTES
        await wake(2 * REST_S - 1)
        assert _in_memory(address) == 0
        assert wakings == [REST_S, 2 * REST_S - 1]
        tasks.cancel_scope.cancel()


@pytest.mark.skipif(LINUX < (5, 14), reason="the kernel does not know the advice")
async def test_the_beginning_of_a_block_can_be_made_to_be_there_first() -> None:
    async with Buffers(BLOCK_BYTES).lend(1) as block:
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        assert _written_bytes(address) == 0
        touch(block)
        assert _written_bytes(address) > 0


def _written_bytes(address: int) -> int:
    """Return how much of the mapping at *address* is this process's own, and no page of zeros."""
    (found,) = (line for line in _mapping(address) if line.startswith("Private_Dirty:"))
    return int(found.split()[1])
