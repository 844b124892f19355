"""`ckptd.Client` with await."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from ckptd.client import Client as BlockingClient
from ckptd.fetching import Ask, OnProgress, Patterns, fetched, forget, release
from ckptd.link import calls
from ckptd.many import KEEP_S, Refs, fetched_many, prefetched, withdrawn
from ckptd.reading.awaited import Tensors
from ckptd.reading.opening import TensorsAsk, Verify, opened_tensors
from ckptd.reading.tensors import settle
from ckptd.values import Blob, DaemonStatus, Progress, Setting, Verdict

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

CALLS_MAX = 256  # each waits in a thread of its own


class Client:
    """A daemon, found or started at the first call; the methods of `ckptd.Client`."""

    def __init__(self, socket: Path | str | None = None) -> None:
        self._socket = socket
        self._limiter = anyio.CapacityLimiter(CALLS_MAX)

    def __repr__(self) -> str:
        return f"<ckptd.aio.Client of {self._socket or 'the usual daemon'}>"

    async def status(self) -> DaemonStatus:
        """Return what the daemon is doing now."""
        return await self._run(lambda client: client.status())

    async def fetch(
        self,
        ref: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
        keep_s: float = 0.0,
        offline: bool = False,
        timeout: float | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
    ) -> Path:
        """Return the local path of what *ref* names; see `ckptd.fetch`."""
        tell = on_progress and _on_loop(on_progress)
        ask = Ask(
            os.fspath(ref),
            sha256,
            tell,
            keep_s,
            offline,
            timeout,
            include=include,
            exclude=exclude,
        )
        async with self._forgotten_if_cancelled(ask):
            return await self._run(lambda client: fetched(lambda: client.connection, ask))

    async def fetch_many(
        self,
        refs: Refs,
        *,
        sha256: Sequence[str | None] | None = None,
        on_progress: OnProgress | None = None,
        keep_s: float = 0.0,
        offline: bool = False,
        timeout: float | None = None,
    ) -> list[Path]:
        """Return the local paths of all *refs*, in their order; see `ckptd.fetch_many`."""
        tell = on_progress and _on_loop(on_progress)
        ask = Ask("", None, tell, keep_s, offline, timeout)
        async with self._forgotten_if_cancelled(ask):
            return await self._run(
                lambda client: fetched_many(lambda: client.connection, refs, sha256, ask)
            )

    async def prefetch(
        self,
        refs: Refs,
        *,
        keep_s: float = KEEP_S,
        include: Patterns = (),
        exclude: Patterns = (),
    ) -> None:
        """Have the node fetch *refs* ahead of need; see `ckptd.prefetch`."""
        ask = Ask("", keep_s=keep_s, include=include, exclude=exclude)
        await self._run(lambda client: prefetched(lambda: client.connection, refs, ask))

    async def withdraw(self, refs: Refs) -> int:
        """End what this user has the node prefetch of *refs*; see `Client.withdraw`."""
        return await self._run(lambda client: withdrawn(lambda: client.connection, refs))

    @asynccontextmanager
    async def open(
        self,
        ref: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
        offline: bool = False,
        timeout: float | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
    ) -> AsyncIterator[Path]:
        """Fetch *ref*, and hold its file inside the block only; see `ckptd.open`."""
        tell = on_progress and _on_loop(on_progress)
        hold = secrets.token_hex(16)
        ask = Ask(
            os.fspath(ref),
            sha256,
            tell,
            0.0,
            offline,
            timeout,
            hold=hold,
            include=include,
            exclude=exclude,
        )
        try:
            yield await self._run(lambda client: fetched(lambda: client.connection, ask))
        finally:  # also when the answer was never seen: the daemon may have granted the lease
            with anyio.CancelScope(shield=True):
                await self._run(lambda client: release(lambda: client.connection, ask))

    @asynccontextmanager
    async def open_tensors(
        self,
        ref: str | os.PathLike[str],
        *,
        tensors: Iterable[str] | None = None,
        sha256: str | None = None,
        verify: Verify = None,
        device: str | torch.device = "cpu",
        offline: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[Tensors]:
        """Read tensors while their file is being fetched; see `ckptd.open_tensors`."""
        tell = on_progress and _on_loop(on_progress)
        ask = TensorsAsk.of(ref, tensors, sha256, verify, device, offline, timeout, tell)
        stack = ExitStack()
        try:
            reading = await self._run(
                lambda client: stack.enter_context(opened_tensors(lambda: client.connection, ask))
            )
            yield Tensors(reading, self._limiter)
            await self._run(lambda _: settle(reading))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(stack.close)
                await self._run(lambda client: release(lambda: client.connection, ask.fetch))

    async def blobs(self) -> list[Blob]:
        """Return what the node's cache holds, the least recently used first."""
        return await self._run(lambda client: client.blobs())

    async def remove_blob(self, key: str, *, force: bool = False) -> int:
        """Drop a blob that nobody holds from the cache; returns the bytes it took.

        With *force*, what ended processes asked to keep it for is over.
        """
        return await self._run(lambda client: client.remove_blob(key, force=force))

    async def verify_blobs(self, keys: Sequence[str] = ()) -> list[Verdict]:
        """Read the blobs called *keys*, or all of the cache, back from the disk.

        What is damaged is served no more; fetching it again brings only its damaged chunks.
        """
        return await self._run(lambda client: client.verify_blobs(keys))

    async def settings(self) -> dict[str, Setting]:
        """Return the daemon's settings in force, by name."""
        return await self._run(lambda client: client.settings())

    async def configure(self, changes: Mapping[str, int | None]) -> dict[str, Setting]:
        """Change settings until the daemon ends; see `ckptd.Client.configure`."""
        return await self._run(lambda client: client.configure(changes))

    async def stop(self) -> None:
        """Have the daemon finish what it may and end; returns once it has begun to."""
        await self._run(lambda client: client.stop())

    @asynccontextmanager
    async def _forgotten_if_cancelled(self, ask: Ask) -> AsyncIterator[None]:
        """Let *ask* hold nothing if nobody will see the answer that may be there already."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._run(lambda client: forget(lambda: client.connection, ask))
            raise

    async def _run(self, method: Callable[[BlockingClient], T]) -> T:
        """Run *method* in a thread; cancelling ends its calls, and with them the thread."""
        tracked = calls.Calls()

        def work() -> T:
            calls.current.set(tracked)  # the thread runs in a copy of our context
            return method(BlockingClient(self._socket))

        try:
            return await anyio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._limiter
            )
        except anyio.get_cancelled_exc_class():
            tracked.cancel()
            raise


def _on_loop(on_progress: OnProgress) -> OnProgress:
    """Have *on_progress* called where the caller awaits, not in the thread that works for it."""
    loop = anyio.lowlevel.current_token()

    def tell(progress: Progress) -> None:
        anyio.from_thread.run_sync(on_progress, progress, token=loop)

    return tell
