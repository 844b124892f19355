"""Brings the files of a listing side by side, and holds them until somebody has a lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anyio

from ckptd_daemon.fetch.call import Call, Request
from ckptd_daemon.fetch.flights import Flight
from ckptd_daemon.fetch.lending import Lender
from ckptd_daemon.fetch.single import Files
from ckptd_daemon.sessions import Process
from ckptd_daemon.sources.listing import Entry, Listing, child
from ckptd_daemon.sources.manifest import CHUNK_BYTES
from ckptd_daemon.sources.source import Object
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.transfer.openings import SMALL_BYTES
from ckptd_daemon.transfer.progress import Gauge, Phase
from ckptd_proto import errors

FILES_AT_ONCE = 32


class Hold:
    """Blobs that are to stay, though nobody has a lease on them yet."""

    def __init__(self, held: Counter[str]) -> None:
        self._all = held
        self._mine: Counter[str] = Counter()

    def add(self, *keys: str) -> None:
        """Hold the blobs called so; they need not exist yet."""
        self._mine.update(keys)
        self._all.update(keys)

    def __contains__(self, key: object) -> bool:
        return key in self._mine

    def end(self) -> None:
        """Hold nothing any more."""
        self._all.subtract(self._mine)
        for key in self._mine:
            if self._all[key] == 0:
                del self._all[key]


class Gathering:
    """Many files at once, each by the flight that it has for everybody."""

    def __init__(self, files: Files, lender: Lender) -> None:
        self._files = files
        self._lender = lender
        self._held: Counter[str] = Counter()

    def on(self, key: str) -> int:
        """Return how often the blob called *key* is held."""
        return self._held[key]

    @contextmanager
    def holding(self) -> Iterator[Hold]:
        """Hold what the block adds, until it ends."""
        hold = Hold(self._held)
        try:
            yield hold
        finally:
            hold.end()

    async def bring(
        self,
        uid: int,
        listing: Listing,
        entries: Sequence[Entry],
        hold: Hold,
        flight: Flight[Any],
    ) -> dict[str, Blob]:
        """Return the blobs of *entries*, by path, for the rights of *uid*.

        The first that cannot be had ends it with its error, and is named.
        """
        blobs: dict[str, Blob] = {}
        calls: dict[str, Call] = {}
        failures: list[errors.CkptdError] = []
        room = anyio.Semaphore(FILES_AT_ONCE)
        _measure(flight.gauge, listing, entries, blobs, calls)

        async def bring(entry: Entry) -> None:
            call = calls[entry.path] = _call(listing, entry, uid)
            call.is_awaited = flight.demand.is_awaited
            call.holds = lambda key: key in hold or flight.demand.holds(key)
            try:
                blobs[entry.path] = await self._brought(call, listing, entry, hold)
            except errors.CkptdError as error:
                failures.append(_naming(error, listing, entry))
                tasks.cancel_scope.cancel()
            finally:
                del calls[entry.path]
                room.release()

        async with anyio.create_task_group() as tasks:
            for entry in entries:
                await room.acquire()
                tasks.start_soon(bring, entry)
        if failures:
            raise failures[0]
        return blobs

    async def _brought(self, call: Call, listing: Listing, entry: Entry, hold: Hold) -> Blob:
        async def take(key: str, obj: Object | None, sha256: str | None) -> Blob:
            hold.add(key)
            if obj is not None and listing.is_stated:
                _require_size(entry, obj.size_bytes)
                obj = replace(obj, chunk_crc32c=entry.crc32c)
            blob = await self._lender.ready(call, key, obj, sha256)
            if listing.is_stated:
                _require_size(entry, blob.size_bytes)
                _require_sums(entry, blob)
            return blob

        return await self._files.found(call, call.request.ref, entry.sha256, take)


def _call(listing: Listing, entry: Entry, uid: int) -> Call:
    """Return a fetch of one file that nobody but us waits for."""
    is_small = (entry.size_bytes or 0) <= SMALL_BYTES
    request = Request(child(listing.url, entry.path), is_one_of_many=is_small)
    return Call(request, Process(0, 0, uid))


def _measure(
    gauge: Gauge,
    listing: Listing,
    entries: Sequence[Entry],
    blobs: Mapping[str, Blob],
    calls: Mapping[str, Call],
) -> None:
    """Have *gauge* show all files as one."""
    gauge.title = f"{listing.title} ({len(entries)} file{'s' * (len(entries) != 1)})"

    def size_bytes(entry: Entry) -> int | None:
        if entry.size_bytes is not None:
            return entry.size_bytes
        if (blob := blobs.get(entry.path)) is not None:
            return blob.size_bytes
        call = calls.get(entry.path)
        return None if call is None else call.progress().total_bytes

    def done_bytes() -> int:
        coming = sum(call.progress().done_bytes for call in calls.values())
        return coming + sum(blob.size_bytes for blob in blobs.values())

    gauge.done_bytes = done_bytes
    gauge.sizes = lambda: map(size_bytes, entries)
    gauge.parts = lambda: [call.progress() for call in calls.values()]
    gauge.enter(Phase.DOWNLOADING)


def _naming(error: errors.CkptdError, listing: Listing, entry: Entry) -> errors.CkptdError:
    """Return *error* for whoever wanted the whole directory."""
    text = (
        f"{entry.path!r} of {listing.title} cannot be had, and so the rest is not handed over: "
        f"{error}; `exclude` leaves it out if you can do without it"
    )
    return error.renewed(text)


def _require_size(entry: Entry, size_bytes: int | None) -> None:
    if None not in {entry.size_bytes, size_bytes} and entry.size_bytes != size_bytes:
        raise errors.DataLoss(
            f"the manifest states {entry.size_bytes} bytes for {entry.path!r}, and the origin has "
            f"{size_bytes}; have whoever publishes them make a new manifest"
        )


def _require_sums(entry: Entry, blob: Blob) -> None:
    if entry.crc32c and blob.chunk_bytes == CHUNK_BYTES and blob.crc32c != entry.crc32c:
        raise errors.DataLoss(
            f"{entry.path!r} does not have the CRC32C that the manifest states; "
            "have whoever publishes them make a new manifest"
        )
