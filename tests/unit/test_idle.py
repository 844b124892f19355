"""Connections between two files: who gets them, and how they end."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

import anyio
import pytest

from ckptd_daemon.sources.source import Endpoint, Proxy
from ckptd_daemon.transfer.idle import IDLE_MAX, Idle

TLS = ssl.create_default_context()
HERE = Endpoint("http://origin.example/a", {}, TLS)


class Wire:
    """A connection, and its other end."""

    def __init__(self) -> None:
        mine, self.theirs = socket.socketpair()
        self.connection = http.client.HTTPConnection("origin.example")
        self.connection.sock = mine

    @property
    def is_open(self) -> bool:
        return self.connection.sock is not None


@pytest.fixture
def wires() -> Iterator[list[Wire]]:
    made = [Wire() for _ in range(IDLE_MAX + 1)]
    yield made
    for wire in made:
        wire.theirs.close()
        wire.connection.close()


async def test_another_object_of_the_host_gets_it_once(wires: list[Wire]) -> None:
    idle = Idle()
    idle.put(wires[0].connection, HERE, is_public=True)
    other = Endpoint("http://origin.example:80/b?signed", {"Authorization": "x"}, TLS)
    assert idle.take(other, is_public=True) is wires[0].connection
    assert idle.take(other, is_public=True) is None


@pytest.mark.parametrize(
    ("endpoint", "is_public"),
    [
        (HERE, False),  # made under a rule that says less
        (Endpoint("https://origin.example/a", {}, TLS), True),
        (Endpoint("http://origin.example:81/a", {}, TLS), True),
        (Endpoint("http://origin.example/a", {}, ssl.create_default_context()), True),
        (Endpoint("http://origin.example/a", {}, TLS, Proxy("http", "proxy", 1)), True),
    ],
)
async def test_nobody_gets_what_was_made_otherwise(
    wires: list[Wire], endpoint: Endpoint, is_public: bool
) -> None:
    idle = Idle()
    idle.put(wires[0].connection, HERE, is_public=True)
    assert idle.take(endpoint, is_public=is_public) is None
    assert wires[0].is_open


async def test_there_are_never_many(wires: list[Wire]) -> None:
    idle = Idle()
    for wire in wires:
        idle.put(wire.connection, HERE, is_public=True)
    assert [wire.is_open for wire in wires] == [False, *[True] * IDLE_MAX]


async def test_each_is_closed_after_a_while_and_all_at_the_end(
    wires: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = Idle()
    monkeypatch.setattr("ckptd_daemon.transfer.idle.IDLE_S", 0.01)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(idle.keep)
            idle.put(wires[0].connection, HERE, is_public=True)
            while wires[0].is_open:
                await anyio.lowlevel.checkpoint()
            monkeypatch.setattr("ckptd_daemon.transfer.idle.IDLE_S", 600)
            idle.put(wires[1].connection, HERE, is_public=True)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert not wires[1].is_open
