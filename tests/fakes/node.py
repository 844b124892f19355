"""The fetch half of a daemon in this process, and a look at what it leaves behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from types import FrameType

import anyio
import psutil

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.call import Call, Request
from ckptd_daemon.fetch.fetcher import Fetcher
from ckptd_daemon.sessions import Process, Sessions
from fakes.origin import Origin
from fakes.tls import TlsFront
from fakes.waiting import until

FETCH_S = 30.0  # none may take so long, whatever the origin does


class Node:
    """Fetches for this process."""

    def __init__(self, root: Path, fetcher: Fetcher) -> None:
        self.root = root
        self.fetcher = fetcher
        self._me = Process.of_pid(os.getpid(), os.getuid())

    async def fetch(self, ref: str, sha256: str | None = None) -> Path:
        """The path of *ref*, leased until the node ends; or the error a caller would get."""
        with self.calling(ref, sha256) as call:
            assert await call.wait(FETCH_S), f"hangs: {call.progress()}"
            return call.result().path

    def calling(self, ref: str, sha256: str | None = None) -> AbstractContextManager[Call]:
        """A fetch to be looked at, or to be left, while it goes on."""
        return self.fetcher.calling(Request(ref, sha256), self._me)

    def entries(self, kind: str) -> list[str]:
        """What the cache has below `partials`, `blobs`, `leases`, `trash` or `quarantine`."""
        found = (self.root / "state" / "cache" / kind).glob("*/*" if kind == "blobs" else "*")
        return sorted(path.name for path in found)


@asynccontextmanager
async def fetching(root: Path, **settings: object) -> AsyncIterator[Node]:
    """A node whose state is below *root*, in haste unless *settings* say otherwise."""
    hasty = {
        "stall_s": 1,
        "first_byte_s": 1,
        "connect_s": 2,
        "retries": 2,
        "revalidate_s": 0,
        "linger_s": 0,
    }
    config = Config(socket=root / "s", state_dir=root / "state", **{**hasty, **settings})
    async with Sessions.open() as sessions, Fetcher.open(config, sessions) as fetcher:
        yield Node(root, fetcher)


@asynccontextmanager
async def clean(root: Path, *origins: Origin | TlsFront, **settings: object) -> AsyncIterator[Node]:
    """A node that, whatever happened to it, leaves no thread, file, connection or lease."""
    async with fetching(root, **settings) as node:
        yield node
        with anyio.fail_after(FETCH_S):
            await node.fetcher.wait_idle()
        await until(lambda: not busy_threads())  # one that was told to end notices in its time
        assert len(node.entries("leases")) == len(node.entries("blobs"))
        assert node.entries("trash") == node.entries("quarantine") == []
    assert open_files(root) == []
    await until(lambda: not connections({origin.port for origin in origins}))  # TLS says goodbye


def connections(ports: set[int]) -> list[str]:
    """The connections of this process to *ports*."""
    mine = psutil.Process().net_connections("tcp")
    return [str(one) for one in mine if one.raddr and one.raddr.port in ports]


def busy_threads() -> list[str]:
    """Where threads other than this one are in the daemon's code."""
    frames = sys._current_frames()
    frames.pop(threading.get_ident())
    return [where for frame in frames.values() if (where := _in_daemon(frame))]


def _in_daemon(frame: FrameType | None) -> str:
    while frame is not None:
        if "ckptd_daemon" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def open_files(root: Path) -> list[str]:
    """The files below *root* that this process has open."""
    links = (_link(fd) for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208  not paths, numbers
    return [link for link in links if link.startswith(str(root))]


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  a socket's link is no path
    except FileNotFoundError:
        return ""
