from __future__ import annotations

import asyncio
import socket
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from ckptd_daemon.door import frontdoor


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    for end in (one, other):
        end.setblocking(False)
    return one, other


async def test_bytes_go_both_ways_until_one_side_closes() -> None:
    client, outer = pair()
    inner, server = pair()
    with client, outer, inner, server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(frontdoor._relay, outer, inner)
            data = bytes(range(256)) * (1 << 13)
            for source, sink in ((client, server), (server, client)):
                tasks.start_soon(frontdoor._send_all, source, memoryview(data))
                received = b""
                while len(received) < len(data):
                    received += await frontdoor._received(sink)
                assert received == data
            client.close()


async def test_a_relay_that_is_cancelled_while_bytes_arrive_ends_without_a_word() -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    client, outer = pair()
    inner, server = pair()
    alarm, ringer = pair()
    with client, outer, inner, server, alarm, ringer:
        async with anyio.create_task_group() as tasks:
            loop.add_reader(alarm, tasks.cancel_scope.cancel)
            tasks.start_soon(frontdoor._relay, outer, inner)
            await anyio.wait_all_tasks_blocked()
            ringer.send(b"!")  # the loop sees both at once, and this one first
            client.send(b"hello")
        loop.remove_reader(alarm)
        await checkpoint()
    assert reported == []
