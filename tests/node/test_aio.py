from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ckptd import aio, errors
from fakes.daemon import Daemon


async def test_the_client_with_await_answers_as_the_other_does(daemon: Daemon) -> None:
    client = aio.Client(daemon.socket)
    assert (await client.status()).pid == daemon.pid
    assert await client.blobs() == []


async def test_a_local_file_is_handed_back_as_it_is(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    client = aio.Client(daemon.socket)
    assert await client.fetch(tmp_path / "file") == tmp_path / "file"
    async with client.open(tmp_path / "file") as path:
        assert path.read_text() == "mine"


async def test_errors_are_the_same_classes(short_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="no daemon listens"):
        await aio.Client(short_path / "none").status()


async def test_cancelling_ends_a_wait_for_a_daemon_that_is_away(daemon: Daemon) -> None:
    client = aio.Client(daemon.socket)
    await client.status()
    daemon.kill()
    with anyio.move_on_after(0.1) as scope:
        await client.status()
    assert scope.cancelled_caught
