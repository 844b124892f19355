"""SHA-256 while the bytes come: what waits for them holds up nobody."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.verify import THREADS, Hasher
from ckptd_proto.crc import crc32c

CHUNK = 4096
SIZE = 5 * CHUNK + 17
DATA = bytes(i * 31 % 251 for i in range(SIZE))
HEADER = Header("o", "t", "v", "n", size_bytes=SIZE, chunk_bytes=CHUNK, is_resumable=True)


class Download:
    """Lands what the test says."""

    def __init__(self, path: Path) -> None:
        self.partial, self.demand = Partial(path, HEADER), Demand()
        self.partial.open()
        self.demand.open(self.partial)

    def land(self, *chunks: int) -> None:
        with mmap.mmap(-1, CHUNK) as block:
            for index in chunks:
                start, end = HEADER.extent(index)
                block[: end - start] = DATA[start:end]
                with memoryview(block) as view:
                    self.partial.write(view, end - start, start)
                self.partial.record(index, crc32c(DATA[start:end]), end - start)
                self.demand.landed(index)


@pytest.fixture
def downloads(tmp_path: Path) -> Iterator[list[Download]]:
    found = [Download(tmp_path / str(n)) for n in range(2 * THREADS + 1)]
    yield found
    for one in found:
        one.partial.close()


async def test_chunks_are_hashed_in_order_in_whatever_order_they_land(
    downloads: list[Download],
) -> None:
    one, hasher, found = downloads[0], Hasher(), []

    async def trail() -> None:
        found.append(await hasher.trail(one.partial, one.demand))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trail)
            for chunks in [(4, 1), (0,), (3, 5), (2,)]:
                await anyio.wait_all_tasks_blocked()
                one.land(*chunks)
    assert found == [hashlib.sha256(DATA).hexdigest()]


async def test_downloads_at_rest_hold_up_no_other_and_end_at_once(
    downloads: list[Download],
) -> None:
    *resting, busy = downloads
    hasher = Hasher()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for one in resting:
                one.land(0)
                tasks.start_soon(hasher.trail, one.partial, one.demand)
            await anyio.wait_all_tasks_blocked()
            busy.land(*range(6))
            found = await hasher.trail(busy.partial, busy.demand)
            assert found == hashlib.sha256(DATA).hexdigest()
            tasks.cancel_scope.cancel()


async def test_a_partial_that_starts_anew_is_not_what_was_hashed(
    downloads: list[Download],
) -> None:
    one, hasher, found = downloads[0], Hasher(), []

    async def trail() -> None:
        found.append(await hasher.trail(one.partial, one.demand))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trail)
            one.land(0, 1)
            await anyio.wait_all_tasks_blocked()
            one.partial.forget()
            one.land(*range(6))
    assert found == [None]
