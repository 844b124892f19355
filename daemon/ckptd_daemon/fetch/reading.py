"""One caller that reads an object while it is on its way: what it may read, and wants next."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread

from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.sessions import Process
from ckptd_daemon.sources.checksums import NOTHING_STATED
from ckptd_daemon.sources.source import ChangedError, Object
from ckptd_daemon.store.partials import CHUNK_BYTES, Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.ranges import Range, Ranges
from ckptd_daemon.transfer.verdict import MismatchError
from ckptd_proto import errors

Span = tuple[int, int]
"""Bytes of an object: the first, and the one behind the last."""

SPANS_MAX = 1 << 16
"""That one reader may want before the size of the object is known."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How much a reader wants, and how soon."""

    is_whole: bool
    """All of it, in the end; else only the spans that it names."""
    is_early: bool
    """What has landed counts before the whole was compared with a checksum that is known."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that grows, or has grown: what of it has landed may be read through `fd`."""

    key: str
    size_bytes: int
    fd: int
    """Closed by the reading."""
    is_unverified: bool = False
    """A checksum of the whole is known, and was not compared yet."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A flight whose chunks may be read as they land."""

    key: str
    size_bytes: int
    demand: Demand
    is_unverified: bool

    @property
    def chunk_count(self) -> int:
        return -(-self.size_bytes // CHUNK_BYTES)


class Reading(Call):
    """A fetch whose caller reads what has landed.

    All that it tells of belongs together: when bytes that it told of are thrown away, it fails.
    """

    def __init__(self, request: Request, holder: Process, terms: Terms) -> None:
        super().__init__(request, holder)
        self._terms = terms
        self._wanted: list[Span] = []  # since no flight knows
        self._chunks: list[int] = []  # that were wanted of a flight
        self._unwanted = Ranges()  # the other chunks of that flight
        self._flight: _Flight | None = None  # while aboard
        self._boarded = anyio.Event()
        self._key = ""  # of what was opened
        self._partial: Partial | None = None  # that was opened
        self._lives = 0  # which of its lives that was
        self._told = 0  # of its chunks
        self._fds: list[int] = []
        self._listening = anyio.CancelScope()
        self._refusal: Exception | None = None

    @contextmanager
    def descriptors(self) -> Iterator[None]:
        """Close at the end of the block what was opened inside."""
        try:
            yield
        finally:
            for fd in self._fds:
                os.close(fd)

    async def listen(self, wants: AsyncIterator[Span]) -> None:
        """Take in what the caller wants, until it says no more or leaves."""
        try:
            with self._listening:
                async for span in wants:
                    self._want(span)
        except Exception as error:  # noqa: BLE001  re-raised to the caller
            self._refusal = error
            self.leave()

    def leave(self) -> None:
        """Stop caring; harmless after the end."""
        self._listening.cancel()
        super().leave()

    def result(self) -> Handed:
        """Return what an ended fetch came to, or raise its error."""
        if self._refusal is not None:
            raise self._refusal
        return super().result()

    @contextmanager
    def wanting(self, demand: Demand, obj: Object, key: str, sha256: str | None) -> Iterator[None]:
        """Have the flight know inside the block what of *obj* is wanted.

        Raises `Aborted` or `DataLoss` if what the caller was told of is not part of it any more.
        """
        if sha256 is not None and key == self._key:
            self._check_as_stated(obj)
        self._require_untold(obj)
        self._partial = None
        is_judged = sha256 is not None or obj.checksums != NOTHING_STATED
        is_readable = obj.is_rangeable and (self._terms.is_early or not is_judged)
        with ExitStack() as stack:
            if self._terms.is_whole or not is_readable:
                stack.enter_context(demand.whole())
            if is_readable:
                self._flight = _Flight(key, obj.size_bytes or 0, demand, is_unverified=is_judged)
                self._board(self._flight)
                self._boarded.set()
            try:
                yield
                self._check_whole(demand, obj.title)
            except (ChangedError, MismatchError) as error:
                self._partial = None
                if isinstance(error, ChangedError) or error.expected != sha256:
                    self._require_untold(obj)
                raise
            finally:
                if demand.partial is not self._partial:  # thrown away: the next one is opened anew
                    self._partial = None
                self._flight = None
                self._boarded = anyio.Event()
                demand.unwant(self)

    async def wait_news(self, timeout_s: float) -> bool:
        """Wait until there is more to tell, for *timeout_s* at most; tell whether it has ended."""
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_news, tasks.cancel_scope)
                await self.wait(timeout_s)
                tasks.cancel_scope.cancel()
        return self.has_ended

    async def _until_news(self, waiting: anyio.CancelScope) -> None:
        await self._boarded.wait()
        flight = self._flight
        if flight is not None and not self._has_news(flight.demand.partial):
            await flight.demand.moved()
        waiting.cancel()

    def _has_news(self, partial: Partial | None) -> bool:
        return partial is not None and (
            partial is not self._partial or len(partial.landed) != self._told
        )

    async def news(self) -> tuple[Opened | None, list[Span]]:
        """Return the file if it is another than before, and what has landed since the last time.

        Raises what the fetch ended with.
        """
        if self.has_ended:
            handed = self.result()
            return await self._published(handed), [(0, handed.size_bytes)]
        flight = self._flight
        if flight is None or flight.demand.partial is None:
            return None, []
        self._check_whole(flight.demand, self.gauge.title)
        opened = None
        if flight.demand.partial is not self._partial:
            opened = await self._opened(flight, flight.demand.partial)
        if flight is not self._flight or self._partial is None:
            return opened, []
        chunks = list(self._partial.landed)[self._told :]
        self._told += len(chunks)
        return opened, _merged(map(self._partial.header.extent, chunks))

    async def _opened(self, flight: _Flight, partial: Partial) -> Opened | None:
        lives = partial.lives
        fd = await self._held_open(partial.reader)
        if fd is None or flight is not self._flight or lives != partial.lives:
            return None  # it is becoming a blob, or failing
        self._partial, self._key, self._lives, self._told = partial, flight.key, lives, 0
        return Opened(flight.key, flight.size_bytes, fd, flight.is_unverified)

    async def _published(self, handed: Handed) -> Opened | None:
        """Return the file that all of it is in, unless it was opened while it grew."""
        if handed.blob is None:
            raise errors.InvalidArgument(f"{handed.path} is a local file; read it there")
        if self._partial is not None:
            if self._told and self._key != handed.blob.key:
                raise _changed(handed.blob.title)
            if self._key == handed.blob.key:
                return None
        fd = await self._held_open(functools.partial(os.open, handed.path, os.O_RDONLY))
        return None if fd is None else Opened(handed.blob.key, handed.size_bytes, fd)

    async def _held_open(self, opening: Callable[[], int | None]) -> int | None:
        """Open a descriptor that is closed with the reading, whatever happens meanwhile."""

        def work() -> int | None:
            fd = opening()
            if fd is not None:
                self._fds.append(fd)
            return fd

        return await to_thread.run_sync(work)

    def _board(self, flight: _Flight) -> None:
        """Want of *flight* what was wanted before it was known, and of earlier ones."""
        before, self._chunks = self._chunks, []
        self._unwanted = Ranges()
        self._unwanted.add(0, flight.chunk_count)
        for index in before:
            self._want_of(flight, (index, index + 1))
        for span in self._wanted:
            self._want_of(flight, _chunks_of(span, flight.size_bytes))
        self._wanted.clear()

    def _want_of(self, flight: _Flight, chunks: Range) -> None:
        """Want *chunks* that were not wanted yet: each is looked at once, whatever overlaps."""
        while (new := self._unwanted.first(*chunks)) is not None:
            self._unwanted.take(*new)
            self._chunks += range(*new)
            flight.demand.want(range(*new), self)

    def _want(self, span: Span) -> None:
        start, end = span
        if start >= end or len(self._wanted) == SPANS_MAX:
            text = f"{span} cannot be wanted: it is empty, or one of more than {SPANS_MAX}"
            raise errors.InvalidArgument(text)
        if self._flight is None:
            self._wanted.append(span)
        else:
            self._want_of(self._flight, _chunks_of(span, self._flight.size_bytes))

    def _check_whole(self, demand: Demand, title: str) -> None:
        """Raise if chunks that were told of were thrown away."""
        if not self._told or self._partial is None:
            return
        if demand.partial is not self._partial:
            raise errors.DataLoss(
                f"{title} was damaged on its way, as its checksum showed: what was read of it may "
                "be wrong; open it again"
            )
        if self._partial.lives != self._lives:
            text = f"{title} had to be fetched anew, for its origin sends no ranges any more"
            raise errors.Aborted(f"{text}; open it again")

    def _check_as_stated(self, obj: Object) -> None:
        """Raise if what was told of became a blob that is not what this caller states."""
        if self._told:
            raise errors.DataLoss(
                f"{obj.title} does not have the stated checksum: what was read of it may be wrong; "
                "check the statement, and open it again"
            )

    def _require_untold(self, obj: Object) -> None:
        if self._told:
            raise _changed(obj.title)


def _changed(title: str) -> errors.Aborted:
    return errors.Aborted(f"{title} changed while it was read; open it again")


def _chunks_of(span: Span, size_bytes: int) -> Range:
    """Return which chunks of an object of *size_bytes* hold *span*."""
    return span[0] // CHUNK_BYTES, -(-min(span[1], size_bytes) // CHUNK_BYTES)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Return *spans*, which do not overlap, as few as they can be."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged
