"""However many listen, and however much there is to tell, the daemon says so much a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ckptd_daemon.rpc.blobs import PROGRESS_MAX_PER_S, BlobsService
from ckptd_daemon.sessions import Process
from ckptd_daemon.transfer.progress import Phase, Progress
from ckptd_proto.v1 import blobs_pb2

FOR_S = 1.0


class Busy:
    """A batch of which something has always just landed."""

    is_done = False

    async def news(self, timeout_s: float) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        return []

    def progress(self) -> Progress:
        return Progress(Phase.DOWNLOADING)


class Fetcher:
    @contextmanager
    def calling_many(self, requests: object, holder: Process) -> Iterator[Busy]:
        yield Busy()


@pytest.mark.parametrize("listeners", [1, 20])
async def test_batches_of_which_much_lands_are_told_no_more_often(listeners: int) -> None:
    me = Process.of_pid(os.getpid(), os.getuid())
    sessions = SimpleNamespace(of=lambda peer: SimpleNamespace(process=me))
    context = SimpleNamespace(peer=lambda: "", add_done_callback=lambda call: None)
    service = BlobsService(Fetcher(), sessions, lambda fd, uid: "")
    told = 0

    async def listen() -> None:
        nonlocal told
        async for _ in service.FetchMany(blobs_pb2.FetchManyRequest(), context):
            told += 1

    began = anyio.current_time()
    with anyio.move_on_after(FOR_S):
        async with anyio.create_task_group() as tasks:
            for _ in range(listeners):
                tasks.start_soon(listen)
    elapsed_s = anyio.current_time() - began
    assert listeners <= told <= PROGRESS_MAX_PER_S * elapsed_s + listeners
