"""The daemon as an object with methods; `ckptd.aio.Client` is the same with await."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ckptd import cache, node
from ckptd.fetching import Ask, OnProgress, Patterns, fetched, opened
from ckptd.link.connection import Connection
from ckptd.many import KEEP_S, Refs, fetched_many, prefetched, withdrawn
from ckptd.reading.opening import TensorsAsk, Verify, read_tensors
from ckptd.reading.tensors import Tensors
from ckptd.values import Blob, DaemonStatus, Setting, Verdict

if TYPE_CHECKING:
    import torch


class Client:
    """A daemon, found or started as the environment says; safe to use from any thread."""

    def __init__(self, socket: Path | str | None = None) -> None:
        """Connect to the daemon at *socket*, or to the usual one.

        Raises:
            Unavailable: None runs, and none may be started.
            FailedPrecondition: It has another version.
        """
        self._connection = Connection.open(None if socket is None else Path(socket))

    def __repr__(self) -> str:
        return f"<Client of {self._connection.path}>"

    def status(self) -> DaemonStatus:
        """Return what the daemon is doing now."""
        return node.status(self._connection)

    def fetch(
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
        ask = Ask(
            os.fspath(ref),
            sha256,
            on_progress,
            keep_s,
            offline,
            timeout,
            include=include,
            exclude=exclude,
        )
        return fetched(lambda: self._connection, ask)

    def fetch_many(
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
        ask = Ask("", None, on_progress, keep_s, offline, timeout)
        return fetched_many(lambda: self._connection, refs, sha256, ask)

    def prefetch(
        self,
        refs: Refs,
        *,
        keep_s: float = KEEP_S,
        include: Patterns = (),
        exclude: Patterns = (),
    ) -> None:
        """Have the node fetch *refs* ahead of need; see `ckptd.prefetch`."""
        ask = Ask("", keep_s=keep_s, include=include, exclude=exclude)
        prefetched(lambda: self._connection, refs, ask)

    def withdraw(self, refs: Refs) -> int:
        """End what this user has the node prefetch of *refs*; returns how many were not done yet.

        What has come of them stays in the cache, for whoever asks.
        """
        return withdrawn(lambda: self._connection, refs)

    def open(
        self,
        ref: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
        offline: bool = False,
        timeout: float | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
    ) -> AbstractContextManager[Path]:
        """Fetch *ref*, and hold its file inside the block only; see `ckptd.open`."""
        ask = Ask(
            os.fspath(ref),
            sha256,
            on_progress,
            0.0,
            offline,
            timeout,
            include=include,
            exclude=exclude,
        )
        return opened(lambda: self._connection, ask)

    def open_tensors(
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
    ) -> AbstractContextManager[Tensors]:
        """Read tensors while their file is being fetched; see `ckptd.open_tensors`."""
        ask = TensorsAsk.of(ref, tensors, sha256, verify, device, offline, timeout, on_progress)
        return read_tensors(lambda: self._connection, ask)

    @property
    def connection(self) -> Connection:
        """The way to the daemon."""
        return self._connection

    def blobs(self) -> list[Blob]:
        """Return what the node's cache holds, the least recently used first."""
        return cache.blobs(self._connection)

    def remove_blob(self, key: str, *, force: bool = False) -> int:
        """Drop a blob that nobody holds from the cache; returns the bytes it took.

        With *force*, what ended processes asked to keep it for is over.
        """
        return cache.remove(self._connection, key, force=force)

    def settings(self) -> dict[str, Setting]:
        """Return the daemon's settings in force, by name."""
        return node.settings(self._connection)

    def configure(self, changes: Mapping[str, int | None]) -> dict[str, Setting]:
        """Change settings until the daemon ends; returns those in force then.

        Args:
            changes: `max_bytes_per_s`, or `source_max_bytes_per_s.` and a host (or host:port), each
                to bytes per second or, for no limit, None.

        Raises:
            InvalidArgument: There is no such setting, or no such value; nothing is changed.
            FailedPrecondition: Only a restart can change it.
            PermissionDenied: It is another user's daemon.
        """
        return node.configure(self._connection, changes)

    def verify_blobs(self, keys: Sequence[str] = ()) -> list[Verdict]:
        """Read the blobs called *keys*, or all of the cache, back from the disk.

        What is damaged is served no more; fetching it again brings only its damaged chunks.
        """
        return cache.verify(self._connection, keys)

    def stop(self) -> None:
        """Have the daemon finish what it may and end; returns once it has begun to."""
        node.stop(self._connection)
