"""A batch of small files costs a message for several, not one each."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ckptd_daemon.fetch.batch import Batch
from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.sessions import Process

COUNT = 640


@pytest.mark.anyio
async def test_what_ends_in_quick_succession_is_told_together() -> None:
    def begin(request: Request) -> Call:
        call = Call(request, Process(1, 1, 1))
        turns = int(request.ref)

        def end() -> None:
            nonlocal turns
            turns -= 1
            if turns > 0:
                asyncio.get_running_loop().call_soon(end)
            else:
                call.end(Handed(Path("/here"), 1, 1, 1, None), None)

        asyncio.get_running_loop().call_soon(end)
        return call

    batch = Batch([Request(f"{1 + index % 64}") for index in range(COUNT)], begin)
    landed: list[int] = []
    messages = 0
    while not batch.is_done:
        landed += [index for index, _ in await batch.news(60)]
        messages += 1
    assert sorted(landed) == list(range(COUNT))
    assert messages <= COUNT / 4
