"""One caller's fetch: what it asks, how far it is, what it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from ckptd_daemon.sessions import Process
from ckptd_daemon.sources.source import Object
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.progress import Gauge, Progress
from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller wants."""

    ref: str
    sha256: str | None = None
    keep_s: float = 0.0
    offline: bool = False
    hold: str = ""
    """The caller's name for the lease, if it will release it."""
    include: tuple[str, ...] = ()
    """Patterns: which files of a directory; empty for all."""
    exclude: tuple[str, ...] = ()
    is_detached: bool = False
    """Nobody waits for it; `keep_s` counts from when it is here."""
    is_one_of_many: bool = False
    """It is likely to be small, and asked for as such if nothing else is known of it."""
    is_here: bool = False
    """It is wanted only if nothing has to be asked or fetched for it."""
    call: str = ""
    """The caller's name for this very fetch, by which it gives back what it never saw."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A file that the caller may read while its lease lives."""

    path: Path
    size_bytes: int
    device: int
    inode: int
    sha256: str | None
    blob: Blob | None = None
    """None for a file that was here already, and is not ours."""
    lease: str = ""


class Call:
    """One caller's fetch in progress."""

    def __init__(self, request: Request, holder: Process) -> None:
        self.request = request
        self.holder = holder
        self.scope = anyio.CancelScope()
        self.gauge = Gauge()
        self.note = ""
        """What happened on its way: whatever it boards from then on tells it."""
        self.is_awaited: Callable[[], bool] = lambda: not request.is_detached
        """Tells whether anybody waits for it."""
        self.holds: Callable[[str], bool] = lambda _key: False
        """Tells of a blob whether the caller keeps it for as long as it waits."""
        self.on_end: Callable[[], object] = bool
        """Called when there is a result."""
        self._ended = anyio.Event()
        self._handed: Handed | None = None
        self._error: Exception | None = None

    def board(self, gauge: Gauge) -> None:
        """Be as far as *gauge* says, from now on."""
        self.gauge = gauge
        gauge.note = gauge.note or self.note

    @contextmanager
    def wanting(self, demand: Demand, obj: Object, key: str, sha256: str | None) -> Iterator[None]:
        """Have the flight that brings *obj* know inside the block what of it is wanted: all."""
        with demand.whole():
            yield

    def progress(self) -> Progress:
        """Return how far it is."""
        return self.gauge.read()

    @property
    def has_ended(self) -> bool:
        """Whether there is a `result`."""
        return self._ended.is_set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the fetch has ended, for *timeout_s* at most; tell whether it has."""
        with anyio.move_on_after(timeout_s):
            await self._ended.wait()
        return self.has_ended

    async def wait_ended(self) -> None:
        """Wait until there is a `result`."""
        await self._ended.wait()

    def leave(self) -> None:
        """Stop caring; nothing happens after the end."""
        if not self._ended.is_set():
            self.scope.cancel()

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.scope.cancel_called

    def result(self) -> Handed:
        """Return what an ended fetch came to, or raise its error."""
        if self._error is not None:
            raise self._error
        if self._handed is None:
            raise errors.Unavailable("the daemon is stopping; ask again once it is back")
        return self._handed

    def end(self, handed: Handed | None, error: Exception | None) -> None:
        """Note the outcome."""
        self._handed, self._error = handed, error
        self._ended.set()
        self.on_end()
