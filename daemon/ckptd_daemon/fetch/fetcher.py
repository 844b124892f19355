"""The fetch half as a whole: who calls, what flies, how it starts and ends."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Self

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.answers import Answers
from ckptd_daemon.fetch.batch import Batch
from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.fetch.directories import Directories
from ckptd_daemon.fetch.flights import Flights
from ckptd_daemon.fetch.gathering import Gathering
from ckptd_daemon.fetch.lending import GoneError, Lender
from ckptd_daemon.fetch.prefetches import Prefetches
from ckptd_daemon.fetch.reading import Reading, Span, Terms
from ckptd_daemon.fetch.single import Files
from ckptd_daemon.fetch.statistics import FlightStatistics, Statistics, unfinished
from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.sources.directories import HttpDirectories, is_directory
from ckptd_daemon.sources.http import HttpSource
from ckptd_daemon.sources.listing import Listing
from ckptd_daemon.sources.source import Object
from ckptd_daemon.store import durable
from ckptd_daemon.store.aliases import Aliases
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.leases import Lease, Leases
from ckptd_daemon.store.room import Space
from ckptd_daemon.store.scrub import Finding, Scrubber
from ckptd_daemon.store.snapshots import SnapshotStore
from ckptd_daemon.store.wishes import Wishes
from ckptd_daemon.transfer.downloader import Downloader
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.openings import Openings
from ckptd_daemon.transfer.pace import Limits
from ckptd_daemon.transfer.small import Small
from ckptd_daemon.transfer.transfer import Transfer
from ckptd_daemon.transfer.verify import Hasher
from ckptd_daemon.transfer.visits import Visits
from ckptd_proto import errors, refs
from ckptd_proto.urls import display

HASH_THREADS = 2
GRANTS_MAX = 4096  # answers that a caller may say it never saw


class Fetcher:
    """Brings what references name to this node, once, and lends it out."""

    def __init__(
        self,
        config: Config,
        tasks: TaskGroup,
        store: BlobStore,
        snapshots: SnapshotStore,
        leases: Leases,
        source: HttpSource,
        is_saving: Callable[[], bool],
    ) -> None:
        self._config = config
        self._tasks = tasks  # owns every flight, and every caller's fetch
        self._store = store
        self._leases = leases
        self._calls: set[Call] = set()
        self._grants: dict[tuple[Process, str], list[str]] = {}  # leases by call, oldest first
        self._quiet = anyio.Event()  # set by the last call to end
        self._is_refusing = False
        self._flights: Flights[Blob] = Flights(
            tasks, linger_s=config.linger_s, failure_s=config.failure_s
        )
        means = Means(config, source, source.brakes)
        self._means = means
        self._versions: Answers[Object] = Answers(
            source.stat, means.brakes, means.hosts, tasks, config
        )
        self._space = Space(store, self._leases_on, config)
        leases.on_freed(self._space.poke)
        self._scrubber = Scrubber(store)
        hasher = Hasher()
        tasks.start_soon(means.keep)
        tasks.start_soon(hasher.buffers.keep)
        downloader = Downloader(means, self._space.grow)
        visits = Visits(means)
        tasks.start_soon(visits.watch)
        openings = Openings(visits, source)
        tasks.start_soon(openings.keep)
        small = Small(visits, openings)
        transfer = Transfer(store, self._space, means.buffers, small, downloader, hasher)
        hash_threads = CapacityLimiter(HASH_THREADS)
        lender = Lender(store, leases, self._flights, transfer, hash_threads)
        self._files = Files(config, store, self._versions, openings.ask, lender, hash_threads)
        self._listings: Answers[Listing] = Answers(
            HttpDirectories(source).listing, means.brakes, means.hosts, tasks, config
        )
        gathering = Gathering(self._files, lender)
        self._directories = Directories(
            config, tasks, gathering, self._listings, store, snapshots, leases
        )
        wishes = Wishes(config.state_dir / "cache" / "prefetches")
        self._prefetches = Prefetches(tasks, wishes, self.calling)
        leisurely = Scrubber(store)
        self._aliases = Aliases(
            store, leisurely, lambda: self._is_flying or is_saving(), config.hash_after_s
        )
        for each in (self._aliases, self._scrubber, leisurely):
            tasks.start_soon(each.keep)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, sessions: Sessions, is_saving: Callable[[], bool] = bool
    ) -> AsyncIterator[Self]:
        """Take stock of the cache and fetch until the block ends; flights then leave partials.

        *is_saving* tells whether the disk has better to do than what can wait.
        """
        cache_dir = config.state_dir / "cache"
        store = BlobStore(cache_dir)
        snapshots = SnapshotStore(cache_dir, store)
        await to_thread.run_sync(store.load)
        await to_thread.run_sync(snapshots.load)
        async with AsyncExitStack() as stack:
            leases = await stack.enter_async_context(Leases.open(cache_dir / "leases", sessions))
            source = await stack.enter_async_context(
                HttpSource.open(
                    connect_s=config.connect_s,
                    first_byte_s=config.first_byte_s,
                    stall_s=config.stall_s,
                    proxy=config.proxy.get_secret_value() if config.proxy else None,
                    ca_file=config.ca_file,
                    is_offline=config.offline,
                )
            )
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            fetcher = cls(config, tasks, store, snapshots, leases, source, is_saving)
            await fetcher._means.load()
            await fetcher._prefetches.resume(config.allow_uids | {os.geteuid()})
            yield fetcher

    def __repr__(self) -> str:
        return f"<Fetcher [{len(self._calls)} callers] {self._flights} {self._store}>"

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight or leased."""
        flights = self._flights, self._directories.flights
        busy = self._calls, self._prefetches, *flights, self._leases
        return not any(map(bool, busy))

    @property
    def _is_flying(self) -> bool:
        return any(map(bool, (self._calls, self._flights, self._directories.flights)))

    def refuse_new(self) -> None:
        """From now on every new fetch raises `Unavailable`."""
        self._is_refusing = True
        self._prefetches.stop()

    async def wait_idle(self) -> None:
        """Return when no fetch is going on; leases may live on."""
        await self._prefetches.wait_idle()
        while self._calls:
            self._quiet = anyio.Event()
            await self._quiet.wait()
        await self._directories.flights.wait_idle()
        await self._flights.wait_idle()

    def unfinished(self) -> list[str]:
        """Say what the next life of the daemon will go on with."""
        return [unfinished(flight.gauge) for flight in self._flights]

    def statistics(self) -> Statistics:
        """Return what is going on now."""
        return Statistics(
            flights=(
                *(FlightStatistics.of(flight, "") for flight in self._versions),
                *(FlightStatistics.of(flight, "") for flight in self._listings),
                *(FlightStatistics.of(flight, "") for flight in self._directories.flights),
                *(FlightStatistics.of(flight, flight.key) for flight in self._flights),
            ),
            blobs=len(self._store),
            used_bytes=sum(blob.size_bytes for blob in self._store),
            quota_bytes=self._config.cache_bytes,
            free_bytes=durable.free_bytes(self._store.partials_dir),
            leases=len(self._leases),
            misses=self._prefetches.misses.recent(),
        )

    def limits(self) -> Limits:
        """Return the bandwidth limits in force."""
        return self._means.pacer.limits

    def limit(self, limits: Limits) -> None:
        """Keep to other bandwidth limits from now on."""
        self._means.pacer.change(limits)

    @contextmanager
    def calling(self, request: Request, holder: Process) -> Iterator[Call]:
        """Fetch for a caller that may leave at any time, by leaving the block."""
        call = Call(self._in_force(request), holder)
        with self._admitted(call):
            yield call

    async def find(self, request: Request, holder: Process) -> Handed | None:
        """Hand over what is here if nothing has to be asked or fetched for it."""
        call = Call(replace(self._in_force(request), is_here=True), holder)
        self._admit(call)
        await self._run(call)
        try:
            return call.result()
        except GoneError:
            return None

    @contextmanager
    def calling_many(self, requests: Sequence[Request], holder: Process) -> Iterator[Batch]:
        """Fetch a batch for a caller that may leave at any time, by leaving the block."""
        are_many = len(requests) > 1

        def begin(request: Request) -> Call:
            call = Call(replace(self._in_force(request), is_one_of_many=are_many), holder)
            self._begin(call)
            return call

        batch = Batch(requests, begin)
        try:
            yield batch
        finally:
            batch.leave()

    async def prefetch(self, request: Request, uid: int) -> None:
        """Fetch for nobody in particular, with the rights of *uid*; `keep_s` counts from its end.

        It is noted when this returns, and survives the daemon. What becomes of it is in the cache,
        or among the statistics' misses.
        """
        self._require_taking()
        await self._prefetches.take_on(self._in_force(request), uid)

    def withdraw(self, ref: str, uid: int) -> int:
        """End the prefetches of *ref* that *uid* asked for; returns how many there were."""
        return self._prefetches.withdraw(ref, uid)

    @contextmanager
    def reading(
        self, request: Request, holder: Process, terms: Terms, wants: AsyncIterator[Span]
    ) -> Iterator[Reading]:
        """Fetch for a caller that reads what has landed, and says meanwhile what it *wants*."""
        reading = Reading(self._in_force(request), holder, terms)
        with reading.descriptors(), self._admitted(reading):
            self._tasks.start_soon(reading.listen, wants)
            yield reading

    def _in_force(self, request: Request) -> Request:
        return replace(request, offline=True) if self._config.offline else request

    @contextmanager
    def _admitted(self, call: Call) -> Iterator[None]:
        self._begin(call)
        try:
            yield
        finally:
            call.leave()

    def _begin(self, call: Call) -> None:
        self._admit(call)
        self._tasks.start_soon(self._run, call)

    def _admit(self, call: Call) -> None:
        self._require_taking()
        call.holds = partial(self._lasts, call.holder)
        self._calls.add(call)

    def _require_taking(self) -> None:
        if self._is_refusing:
            raise errors.Unavailable("the daemon is stopping; ask again once it is back")

    async def release(self, lease: str, holder: Process) -> None:
        """Give a lease back, if it is one of the holder's user."""
        await self._leases.release(lease, holder.uid, wholly=True)

    async def give_back(self, call: str, holder: Process) -> None:
        """End the holder's own *call*, or give back what it was granted and never saw."""
        for current in self._calls:
            if (current.holder, current.request.call) == (holder, call):
                current.leave()
        for lease in self._grants.pop((holder, call), ()):
            await self._leases.release(lease, holder.uid, wholly=False)

    def blobs(self) -> list[tuple[Blob, int]]:
        """Return the published blobs, each with the number of its leases."""
        return [(blob, self._leases_on(blob.key)) for blob in self._store]

    async def verify(self, keys: Sequence[str], holder: Process) -> AsyncIterator[Finding]:
        """Read the blobs called *keys*, or all, back from the disk; tells of each when it is done.

        Those that are dropped meanwhile are left out.
        """
        _require_owner(holder, "verify")
        chosen = [self._named(key) for key in keys] if keys else list(self._store)
        for blob in chosen:
            finding = await self._scrubber.check(blob)
            if finding is not None:
                if finding.damaged_chunks:
                    self._space.poke()
                yield finding

    def _named(self, key: str) -> Blob:
        blob = self._store.find(key)
        if blob is None:
            raise errors.NotFound(f"no blob {key} in the cache; `ckptd cache ls` lists them")
        return blob

    async def remove(self, key: str, holder: Process, *, is_forced: bool) -> int:
        """Drop a blob that nobody holds, for the daemon's user; returns the bytes it took.

        If *is_forced*, a process that has ended and wanted it kept is nobody.
        """
        _require_owner(holder, "clear")
        blob = self._named(key)
        for lease in self._leases.kept(key) if is_forced else ():
            await self._leases.release(lease.id, lease.holder.uid, wholly=True)
        if leases := self._leases_on(key):
            raise errors.FailedPrecondition(_held(key, leases, self._leases.kept(key)))
        self._store.forget(key)
        await to_thread.run_sync(self._store.remove, blob.path.parent)
        self._space.poke()
        return blob.size_bytes

    async def _run(self, call: Call) -> None:
        handed, failure = None, None
        try:
            with call.scope:
                handed = await self._handed(call)
            if handed is not None and call.is_left:  # too late to be interrupted
                await self._leases.release(handed.lease, call.holder.uid, wholly=False)
            elif handed is not None and call.request.call:
                self._granted(call, handed.lease)
        except Exception as error:  # noqa: BLE001  re-raised to the caller
            failure = error
        finally:
            self._calls.discard(call)
            call.end(handed, failure)
            if not self._calls:
                self._quiet.set()
                self._aliases.poke()

    async def _handed(self, call: Call) -> Handed:
        request = call.request
        url = refs.parse(request.ref, request.sha256).url
        if request.is_here and (url is None or is_directory(url)):
            raise GoneError  # it takes a while to tell
        if url is not None and is_directory(url):
            handed = await self._directories.handed(call, url)
        elif url is not None and (request.include or request.exclude):
            text = f"{display(url)} is a file; patterns choose from a directory: end it with /"
            raise errors.InvalidArgument(text)
        else:
            handed = await self._files.handed(call)
        if url is not None:
            self._prefetches.misses.arrived(url, request, call.holder.uid)
        return handed

    def _leases_on(self, key: str) -> int:
        return self._leases.on(key) + self._directories.holders(key)

    def _lasts(self, holder: Process, key: str) -> bool:
        """Whether *holder* keeps the blob called *key* until it ends."""
        return self._leases.lasts(key, holder) or self._directories.last(key, holder)

    def _granted(self, call: Call, lease: str) -> None:
        self._grants.setdefault((call.holder, call.request.call), []).append(lease)
        while len(self._grants) > GRANTS_MAX:
            del self._grants[next(iter(self._grants))]


def _held(key: str, leases: int, kept: list[Lease]) -> str:
    """Say who holds a blob, and when it can go."""
    if alive := leases - len(kept):
        count = f"{alive} lease{'s' * (alive != 1)}"
        return f"blob {key} is held by {count}; it can go when their processes have ended"
    left_s = max(lease.until or 0.0 for lease in kept) - time.time()
    return (
        f"blob {key} is kept for {max(1, round(left_s / 60))} min more, as a process that has ended "
        "asked; `ckptd cache rm --force` drops it now"
    )


def _require_owner(holder: Process, verb: str) -> None:
    if holder.uid != os.geteuid():
        text = f"only user {os.geteuid()}, whose daemon this is, may {verb} its cache"
        raise errors.PermissionDenied(text)
