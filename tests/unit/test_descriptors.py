from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from ckptd import errors
from ckptd.link import descriptors
from ckptd_daemon.door.descriptors import TOKEN_S, Descriptors
from ckptd_daemon.door.questions import Questions
from ckptd_daemon.sessions import Process


class Offered:
    """A hand-over socket at work."""

    def __init__(self, daemon: Descriptors, path: Path) -> None:
        self.daemon = daemon
        self.path = path

    async def receive(self, token: str) -> int:
        return await anyio.to_thread.run_sync(descriptors.receive, self.path, token)


async def echoed(question: bytes, _: Process) -> bytes:
    return question


@pytest.fixture
async def offered(short_path: Path) -> AsyncIterator[Offered]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{short_path}/s.fds")
        listener.listen()
        listener.setblocking(False)
        daemon, questions = Descriptors(listener), Questions("life", frozenset(), echoed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.serve, questions)
            yield Offered(daemon, short_path / "s")
            tasks.cancel_scope.cancel()


async def test_a_token_brings_the_very_same_file(offered: Offered, short_path: Path) -> None:
    (short_path / "file").write_bytes(b"content")
    with (short_path / "file").open("rb") as file:
        token = offered.daemon.offer(file.fileno(), os.getuid())
    fd = await offered.receive(token)
    try:
        assert os.fstat(fd).st_ino == (short_path / "file").stat().st_ino
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


async def test_a_token_works_once(offered: Offered) -> None:
    token = offered.daemon.offer(0, os.getuid())
    os.close(await offered.receive(token))
    with pytest.raises(errors.PermissionDenied, match="no descriptor waits"):
        await offered.receive(token)


async def test_a_token_is_of_no_use_to_another_user(offered: Offered) -> None:
    token = offered.daemon.offer(0, os.getuid() + 1)
    with pytest.raises(errors.PermissionDenied):
        await offered.receive(token)


async def test_a_token_that_nobody_comes_for_expires_and_frees_its_descriptor(
    offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_before = psutil.Process().num_fds()
    token = offered.daemon.offer(0, os.getuid())
    later = anyio.current_time() + TOKEN_S + 1
    monkeypatch.setattr(anyio, "current_time", lambda: later)
    with pytest.raises(errors.PermissionDenied):
        await offered.receive(token)
    assert psutil.Process().num_fds() == open_before


@pytest.mark.parametrize("request_", [b"", b"x" * 1000, b"\xff\n"])
async def test_nonsense_is_survived(offered: Offered, request_: bytes) -> None:
    def speak() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(f"{offered.path}.fds")
            sock.sendall(request_)

    await anyio.to_thread.run_sync(speak)
    os.close(await offered.receive(offered.daemon.offer(0, os.getuid())))
