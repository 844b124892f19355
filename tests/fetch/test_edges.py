"""A name with several addresses, and a resolver that takes its time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest
from anyio import CapacityLimiter, to_thread

from ckptd import errors
from ckptd_daemon.sources.source import TransientError
from ckptd_daemon.transfer.edges import BLAMED_S, Edges
from fakes.deaf import deaf
from fakes.node import fetching
from fakes.origin import Origin

NAME = "edges.test"
Resolve = Callable[..., list[tuple[object, ...]]]


@contextmanager
def mute(address: str, port: int) -> Iterator[socket.socket]:
    """Somebody at *address* who takes connections, and never says a word."""
    with socket.create_server((address, port)) as listener:
        yield listener


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> Callable[[Resolve], None]:
    """Have a function answer for `NAME`, both to us and to aiohttp."""
    real = socket.getaddrinfo
    really = aiohttp.ThreadedResolver.resolve

    def become(answer: Resolve) -> None:
        def getaddrinfo(host: object, port: object, *args: object, **more: object) -> object:
            if host in (NAME, NAME.encode()) and not int(str(more.get("flags", 0))):
                return answer(port)
            return real(host, port, *args, **more)

        async def resolve(self: object, host: str, port: int, family: int) -> list[object]:
            if host != NAME:
                return await really(self, host, port, family)
            found = await to_thread.run_sync(answer, port, abandon_on_cancel=True)
            known = {"hostname": host, "port": port, "family": family, "proto": 0, "flags": 0}
            return [{**known, "host": info[4][0]} for info in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)

    return become


def infos(port: object, *addresses: str) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]


async def test_after_a_stall_the_next_connection_goes_to_another_address(
    short_path: Path, origin: Origin, data: bytes, resolving: Callable[[Resolve], None]
) -> None:
    origin.put("model", data)
    url = origin.url("model").replace("127.0.0.1", NAME)
    resolving(lambda port: infos(port, "127.0.0.1"))
    with mute("127.0.0.2", origin.port), mute("127.0.0.3", origin.port):
        async with fetching(short_path, retries=2, revalidate_s=60, streams=2) as node:
            obj = await node.fetcher._versions.of(url, only_public=False, on_board=bool)
            assert obj.direct is not None, "streams bring it"
            resolving(lambda port: infos(port, "127.0.0.2", "127.0.0.3", "127.0.0.1"))
            assert (await node.fetch(url)).read_bytes() == data


@pytest.fixture(params=["question", "streams"])
def asked(
    request: pytest.FixtureRequest, short_path: Path, resolving: Callable[[Resolve], None]
) -> Callable[..., Awaitable[Path | errors.Unavailable]]:
    """Fetch what an origin has, by a name: all that is asked, or only the bytes, of these addresses."""

    async def fetch(origin: Origin, *addresses: str) -> Path | errors.Unavailable:
        url = origin.url("model").replace("127.0.0.1", NAME)
        patient = {"first_byte_s": 600, "stall_s": 600, "revalidate_s": 60}
        async with fetching(short_path, connect_s=1, retries=0, **patient) as node:
            if request.param == "streams":
                resolving(lambda port: infos(port, "127.0.0.1"))
                await node.fetcher._versions.of(url, only_public=False, on_board=bool)
            resolving(lambda port: infos(port, *addresses))
            with anyio.fail_after(20):
                try:
                    return await node.fetch(url)
                except errors.Unavailable as error:  # it would leave the node in a group
                    return error

    return fetch


async def test_an_address_that_never_takes_a_connection_is_given_up(
    origin: Origin, data: bytes, asked: Callable[..., Awaitable[Path | errors.Unavailable]]
) -> None:
    origin.put("model", data)
    with deaf("127.0.0.2", origin.port):
        failure = await asked(origin, "127.0.0.2")
    assert isinstance(failure, errors.Unavailable)
    assert "cannot connect" in str(failure) or "cannot be reached" in str(failure)
    assert origin.bodies("model") == []


CHECK = "; check host and port, or try again later"


async def test_where_nobody_listens_the_address_is_to_be_checked(
    origin: Origin, data: bytes, asked: Callable[..., Awaitable[Path | errors.Unavailable]]
) -> None:
    origin.put("model", data)
    failure = await asked(origin, "127.0.0.2")
    assert f"Connection refused{CHECK}" in str(failure)


async def test_a_name_that_is_not_known_is_to_be_checked(
    short_path: Path, resolving: Callable[[Resolve], None]
) -> None:
    def unknown(port: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    resolving(unknown)
    async with fetching(short_path, retries=0) as node:
        with pytest.raises(errors.Unavailable, match=f"not known{CHECK}"):
            await node.fetch(f"http://{NAME}/model")


async def test_after_an_address_that_never_takes_a_connection_the_next_is_tried(
    origin: Origin, data: bytes, asked: Callable[..., Awaitable[Path | errors.Unavailable]]
) -> None:
    origin.put("model", data)
    with deaf("127.0.0.2", origin.port):
        path = await asked(origin, "127.0.0.2", "127.0.0.1")
    assert isinstance(path, Path), path
    assert path.read_bytes() == data


async def test_a_resolver_that_hangs_is_not_waited_for(
    short_path: Path, origin: Origin, data: bytes, resolving: Callable[[Resolve], None]
) -> None:
    origin.put("model", data)
    gone = threading.Event()

    def hang(port: object) -> list[tuple[object, ...]]:
        gone.wait(20)
        return infos(port, "127.0.0.1")

    resolving(hang)
    try:
        async with fetching(short_path, retries=0, connect_s=0.3) as node:
            with anyio.fail_after(10), pytest.raises(errors.Unavailable, match="was not resolved"):
                await node.fetch(origin.url("model").replace("127.0.0.1", NAME))
            gone.set()
    finally:
        gone.set()


async def test_streams_do_not_wait_for_it_either(resolving: Callable[[Resolve], None]) -> None:
    gone = threading.Event()

    def hang(port: object) -> list[tuple[object, ...]]:
        gone.wait(20)
        return []

    resolving(hang)
    try:
        with anyio.fail_after(10), pytest.raises(TransientError, match="was not resolved"):
            await Edges(CapacityLimiter(1)).of(NAME, 80, 0.1)
    finally:
        gone.set()


async def test_a_name_that_nobody_knows_may_pass(resolving: Callable[[Resolve], None]) -> None:
    def unknown(port: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    resolving(unknown)
    with pytest.raises(TransientError, match="Temporary failure"):
        await Edges(CapacityLimiter(1)).of(NAME, 80, 5)


async def test_who_was_blamed_last_comes_last_and_for_a_while_only() -> None:
    now = [1000.0]
    edges = Edges(CapacityLimiter(1), lambda: now[0])
    found = infos(80, "a", "b", "c")
    edges.blame("a")
    now[0] += 1
    edges.blame("b")
    assert [info[4][0] for info in edges.ordered(found)] == ["c", "a", "b"]
    now[0] += BLAMED_S
    assert edges.ordered(found) == found
