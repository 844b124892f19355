from __future__ import annotations

import asyncio
import socket
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ckptd_daemon.door.relay import relay

DATA = bytes(range(256)) * (1 << 13)  # more than the sockets hold


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    for end in (one, other):
        end.setblocking(False)
    return one, other


async def send(sink: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sink, data)


async def received(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(source, count)
        assert piece, "it ended early"
        data += piece
    return data


async def test_bytes_go_both_ways_at_once_until_one_side_closes() -> None:
    client, outer = pair()
    inner, server = pair()
    with client, outer, inner, server, anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, outer, inner)
            tasks.start_soon(send, client, DATA)
            tasks.start_soon(send, server, DATA)
            assert await received(server, len(DATA)) == DATA
            assert await received(client, len(DATA)) == DATA
            client.close()


async def test_it_reads_no_further_while_nobody_takes_what_it_has() -> None:
    client, outer = pair()
    inner, server = pair()
    with client, outer, inner, server, anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, outer, inner)
            sent = 0
            with pytest.raises(BlockingIOError):
                while sent < 64 << 20:
                    await anyio.wait_all_tasks_blocked()
                    sent += client.send(DATA)
            assert len(await received(server, sent)) == sent
            await send(client, b"on")
            assert await received(server, 2) == b"on"
            tasks.cancel_scope.cancel()


async def test_it_ends_when_the_one_that_takes_nothing_is_gone() -> None:
    client, outer = pair()
    inner, server = pair()
    with client, outer, inner, anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, outer, inner)
            with pytest.raises(BlockingIOError):
                while True:
                    await anyio.wait_all_tasks_blocked()
                    client.send(DATA)
            server.close()


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
            tasks.start_soon(relay, outer, inner)
            await anyio.wait_all_tasks_blocked()
            ringer.send(b"!")  # the loop sees both at once, and this one first
            client.send(b"hello")
        loop.remove_reader(alarm)
        await checkpoint()
    assert reported == []
