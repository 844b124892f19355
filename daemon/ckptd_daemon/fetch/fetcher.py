"""From a reference to a leased path: the use case."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.fetch.downloader import Downloader
from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.fetch.progress import Gauge, Progress
from ckptd_daemon.fetch.transfer import MismatchError, Transfer
from ckptd_daemon.fetch.versions import Versions
from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.sources import files
from ckptd_daemon.sources.http import HttpSource
from ckptd_daemon.sources.source import ChangedError, Object
from ckptd_daemon.store import durable
from ckptd_daemon.store.blobs import Blob, BlobStore, key_of
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.leases import Leases
from ckptd_daemon.store.room import Space
from ckptd_proto import errors, refs
from ckptd_proto.urls import display, identity

BUFFER_COUNT = 32  # of 8 MiB: four flights at full speed
CHANGES_MAX = 2
HASH_THREADS = 2


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """One transfer now going on."""

    key: str
    title: str
    progress: Progress
    waiters: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The fetch half at a glance. Sizes in bytes."""

    flights: tuple[FlightStatistics, ...]
    blobs: int
    used_bytes: int
    quota_bytes: int | None
    free_bytes: int
    leases: int


class _GoneError(Exception):
    """The cache does not have it, or no longer as it was published."""


class Fetcher:
    """Brings what references name to this node, once, and lends it out."""

    def __init__(
        self,
        config: Config,
        tasks: TaskGroup,
        store: BlobStore,
        leases: Leases,
        source: HttpSource,
    ) -> None:
        self._config = config
        self._tasks = tasks  # owns every flight, and every caller's fetch
        self._store = store
        self._leases = leases
        self._calls: set[Call] = set()
        self._quiet = anyio.Event()  # set by the last call to end
        self._is_refusing = False
        self._hash_threads = CapacityLimiter(HASH_THREADS)
        self._hashing = anyio.Lock()  # one late SHA-256 at a time, so that none is done twice
        self._flights: Flights[Blob] = Flights(tasks, linger_s=config.linger_s)
        self._versions = Versions(
            source, tasks, revalidate_s=config.revalidate_s, retries=config.retries
        )
        space = Space(
            store,
            lambda key: key in leases or key in self._flights,
            quota_bytes=config.cache_bytes,
            floor_bytes=config.free_floor_bytes,
        )
        buffers = Buffers(BUFFER_COUNT)
        downloader = Downloader(config, source, buffers, space.make)
        self._transfer = Transfer(store, space, buffers, downloader)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, sessions: Sessions) -> AsyncIterator[Self]:
        """Take stock of the cache and fetch until the block ends; flights then leave partials."""
        cache_dir = config.state_dir / "cache"
        store = BlobStore(cache_dir)
        await to_thread.run_sync(store.load)
        async with AsyncExitStack() as stack:
            leases = await stack.enter_async_context(Leases.open(cache_dir / "leases", sessions))
            source = await stack.enter_async_context(
                HttpSource.open(connect_s=config.connect_s, stall_s=config.stall_s)
            )
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            yield cls(config, tasks, store, leases, source)

    def __repr__(self) -> str:
        return f"<Fetcher [{len(self._calls)} callers] {self._flights} {self._store}>"

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight or leased."""
        return not (self._calls or self._flights or self._leases)

    def refuse_new(self) -> None:
        """From now on every new fetch raises `Unavailable`."""
        self._is_refusing = True

    async def wait_idle(self) -> None:
        """Return when no fetch is going on; leases may live on."""
        while self._calls:
            self._quiet = anyio.Event()
            await self._quiet.wait()
        await self._flights.wait_idle()

    def unfinished(self) -> list[str]:
        """Say what the next life of the daemon will go on with."""
        return [_unfinished(flight.gauge) for flight in self._flights]

    def statistics(self) -> Statistics:
        """Return what is going on now."""
        return Statistics(
            flights=(
                *(_statistics(flight, "") for flight in self._versions),
                *(_statistics(flight, flight.key) for flight in self._flights),
            ),
            blobs=len(self._store),
            used_bytes=sum(blob.size_bytes for blob in self._store),
            quota_bytes=self._config.cache_bytes,
            free_bytes=durable.free_bytes(self._store.partials_dir),
            leases=len(self._leases),
        )

    @contextmanager
    def calling(self, request: Request, holder: Process) -> Iterator[Call]:
        """Fetch for a caller that may leave at any time, by leaving the block."""
        if self._is_refusing:
            raise errors.Unavailable("the daemon is stopping; ask again once it is back")
        call = Call(request, holder)
        self._calls.add(call)
        self._tasks.start_soon(self._run, call)
        try:
            yield call
        finally:
            call.leave()

    async def release(self, lease: str, holder: Process) -> None:
        """Give a lease back, if it is one of the holder's user."""
        await self._leases.release(lease, holder.uid, wholly=True)

    def blobs(self) -> list[tuple[Blob, int]]:
        """Return the published blobs, each with the number of its leases."""
        return [(blob, self._leases.on(blob.key)) for blob in self._store]

    async def remove(self, key: str, holder: Process) -> int:
        """Drop a blob that nobody holds, for the daemon's user; returns the bytes it took."""
        if holder.uid != os.geteuid():
            text = f"only user {os.geteuid()}, whose daemon this is, may clear its cache"
            raise errors.PermissionDenied(text)
        blob = self._store.find(key)
        if blob is None:
            raise errors.NotFound(f"no blob {key} in the cache; `ckptd cache ls` lists them")
        if leases := self._leases.on(key):
            text = f"blob {key} is held by {leases} leases; it can go when their processes ended"
            raise errors.FailedPrecondition(text)
        self._store.forget(key)
        await to_thread.run_sync(self._store.remove, blob.path.parent)
        return blob.size_bytes

    async def _run(self, call: Call) -> None:
        handed, failure = None, None
        try:
            with call.scope:
                handed = await self._handed(call)
        except Exception as error:  # noqa: BLE001  re-raised to the caller
            failure = error
        finally:
            self._calls.discard(call)
            call.end(handed, failure)
            if not self._calls:
                self._quiet.set()

    async def _handed(self, call: Call) -> Handed:
        ref = refs.parse(call.request.ref, call.request.sha256)
        if ref.path is not None:
            return await self._local(call, ref.path, ref.sha256)
        is_own = call.holder.uid == os.geteuid()
        if ref.sha256 is not None and is_own:
            with suppress(_GoneError):
                return await self._cached(call, self._store.with_sha256(ref.sha256), ref.sha256)
        url = ref.url or ""
        if call.request.offline:
            if not is_own:
                text = (
                    "only the origin can tell what a user other than the daemon's may read; "
                    "ask without `offline`"
                )
                raise errors.PermissionDenied(text)
            return await self._offline(call, url, ref.sha256)
        for _ in range(CHANGES_MAX):
            obj = await self._versions.of(url, only_public=not is_own, on_board=call.board)
            try:
                return await self._held(call, key_of(obj.id, obj.version), obj, ref.sha256)
            except ChangedError:
                self._versions.forget(url, only_public=not is_own)
        raise errors.Aborted(
            f"{display(url)} changed {CHANGES_MAX} times while it was fetched; "
            "ask again when it is settled"
        )

    async def _local(self, call: Call, path: Path, sha256: str | None) -> Handed:
        below = None if call.holder.uid == os.geteuid() else self._config.read_roots
        look = partial(files.look, path, sha256, below=below)
        found = await to_thread.run_sync(look, limiter=self._hash_threads if sha256 else None)
        return Handed(path, found.size_bytes, found.device, found.inode, sha256)

    async def _offline(self, call: Call, url: str, sha256: str | None) -> Handed:
        try:
            return await self._cached(call, self._store.newest_of(identity(url)), sha256)
        except _GoneError:
            text = f"{display(url)} is not in the cache; ask without `offline` to fetch it"
            raise errors.NotFound(text) from None

    async def _cached(self, call: Call, blob: Blob | None, sha256: str | None) -> Handed:
        if blob is None:
            raise _GoneError
        return await self._held(call, blob.key, None, sha256)

    async def _held(self, call: Call, key: str, obj: Object | None, sha256: str | None) -> Handed:
        """Hand the blob called *key* over; it is leased from before it exists."""
        lease = self._leases.take(key, call.holder, call.request.keep_s, call.request.hold)
        try:
            blob = await self._ready(call, key, obj, sha256)
            await self._leases.write(lease.id)
            for_others = call.holder.uid != os.geteuid()
            touch = partial(self._store.touch, blob, for_others=for_others)
            found = await to_thread.run_sync(touch)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._leases.release(lease.id, call.holder.uid, wholly=False)
            raise
        return Handed(
            blob.path, blob.size_bytes, found.st_dev, found.st_ino, blob.sha256, blob, lease.id
        )

    async def _ready(self, call: Call, key: str, obj: Object | None, sha256: str | None) -> Blob:
        """Return the blob called *key*, checked, from the cache or else from its origin."""
        while True:
            blob = self._store.find(key)
            if blob is not None and await to_thread.run_sync(self._store.check, blob):
                return await self._vouched(blob, sha256)
            if obj is None:
                raise _GoneError
            try:
                work = partial(self._bring, obj, sha256)
                async with self._flights.board(key, work) as flight:
                    call.board(flight.gauge)
                    with flight.demand.whole():
                        await flight.outcome()
            except MismatchError as error:
                if error.expected == sha256:
                    raise errors.DataLoss(_mismatch(obj.title, error.found, sha256)) from error

    async def _bring(self, obj: Object, sha256: str | None, flight: Flight[Blob]) -> Blob:
        return await self._transfer.bring(obj, sha256, flight.gauge, flight.demand)

    async def _vouched(self, blob: Blob, sha256: str | None) -> Blob:
        """Return *blob* if it has the SHA-256 that the caller states; raises `DataLoss`."""
        if sha256 is None:
            return blob
        async with self._hashing:
            blob = self._store.find(blob.key) or blob
            if blob.sha256 is None:
                work = partial(self._store.learn_sha256, blob)
                blob = await to_thread.run_sync(work, limiter=self._hash_threads)
        if blob.sha256 != sha256:
            raise errors.DataLoss(_mismatch(blob.title, blob.sha256 or "", sha256))
        return blob


def _mismatch(name: str, found: str, stated: str | None) -> str:
    return (
        f"{name} has the SHA-256 {found}, not the stated {stated}; "
        "check the statement, or with whoever publishes the file"
    )


def _statistics(flight: Flight[Any], key: str) -> FlightStatistics:
    return FlightStatistics(key, flight.gauge.title, flight.gauge.read(), flight.passengers)


def _unfinished(gauge: Gauge) -> str:
    progress = gauge.read()
    total = "an unknown number of" if progress.total_bytes is None else progress.total_bytes
    return f"{progress.done_bytes} of {total} bytes of {gauge.title}"
