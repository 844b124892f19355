"""What comes byte by byte, each in time, is a stall none the less: head, body and page."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from ckptd_daemon.sources import http
from ckptd_daemon.sources.http import HttpSource
from ckptd_daemon.sources.source import TransientError
from fakes.origin import Fault, Origin


@pytest.fixture
async def source() -> AsyncIterator[HttpSource]:
    async with HttpSource.open(connect_s=5, first_byte_s=2, stall_s=1) as found:
        with anyio.fail_after(20):
            yield found


@pytest.fixture
def endless() -> Iterator[str]:
    """The URL of what answers with a header that never ends, a byte at a time."""
    is_over = threading.Event()

    def dribble() -> None:
        with server.accept()[0] as taken:
            taken.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not is_over.wait(0.02):
                try:
                    taken.sendall(b"x")
                except OSError:
                    return  # the asker has had enough

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=dribble)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/model"
        is_over.set()
        thread.join(10)


async def test_a_head_that_dribbles_is_no_answer(source: HttpSource, endless: str) -> None:
    with pytest.raises(TransientError, match="no answer in time"):
        await source.stat(endless, only_public=False)


async def test_who_takes_a_connection_and_never_shakes_hands_is_not_waited_for() -> None:
    async with HttpSource.open(connect_s=0.1, first_byte_s=60, stall_s=60) as source:
        with socket.create_server(("127.0.0.1", 0)) as mute, anyio.fail_after(20):
            url = f"https://127.0.0.1:{mute.getsockname()[1]}/model"
            with pytest.raises(TransientError, match="no answer in time"):
                await source.stat(url, only_public=False)


async def test_a_body_that_dribbles_is_a_stall(source: HttpSource, origin: Origin) -> None:
    file = origin.put("model", bytes(100_000))
    obj = await source.stat(origin.url("model"), only_public=False)
    file.lasting = Fault.DRIBBLE
    with pytest.raises(TransientError, match="the reply dribbles"):
        async with source.read(obj, 0) as blocks:
            async for _ in blocks:
                pass


async def test_what_keeps_coming_may_take_as_long_as_it_likes(source: HttpSource) -> None:
    for way in (source._public, source._anywhere):
        timeout = way._session.timeout
        assert timeout.total is None
        assert timeout.sock_read == 1


async def test_a_list_has_its_time_and_no_more(
    source: HttpSource, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PAGE_MAX_S", 0.1)
    origin.put("list", bytes(1000)).lasting = Fault.DRIBBLE
    with pytest.raises(TransientError, match="the list was not here after"):
        await source.page(origin.url("list"), 1 << 20, only_public=False)
