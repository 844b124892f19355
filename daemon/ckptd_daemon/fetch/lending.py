"""From an object version to a leased blob: out of the cache, else by one flight for all."""

from __future__ import annotations

import hashlib
import os
from functools import partial

import anyio
from anyio import CapacityLimiter, to_thread

from ckptd_daemon.fetch.call import Call, Handed
from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.fetch.transfer import Transfer
from ckptd_daemon.fetch.verdict import MismatchError
from ckptd_daemon.sources.source import Object
from ckptd_daemon.store.blobs import Blob, BlobStore
from ckptd_daemon.store.leases import Leases
from ckptd_proto import errors


class GoneError(Exception):
    """The cache does not have it, or no longer as it was published."""


class Lender:
    """Lends out blobs; each is leased from before it exists."""

    def __init__(
        self,
        store: BlobStore,
        leases: Leases,
        flights: Flights[Blob],
        transfer: Transfer,
        hash_threads: CapacityLimiter,
    ) -> None:
        self._store = store
        self._leases = leases
        self._flights = flights
        self._transfer = transfer
        self._hash_threads = hash_threads
        self._hashing = anyio.Lock()  # one late SHA-256 at a time, so that none is done twice

    async def held(self, call: Call, key: str, obj: Object | None, sha256: str | None) -> Handed:
        """Hand the blob called *key* over, which is *obj* if it must be fetched first.

        Raises `ChangedError`, `GoneError` or one of our typed errors.
        """
        lease = self._leases.take(key, call.holder, call.request.keep_s, call.request.hold)
        try:
            for_others = call.holder.uid != os.geteuid()
            found = None
            while found is None:  # it may be found damaged, and set aside, at any time
                blob = await self.ready(call, key, obj, sha256)
                touch = partial(self._store.touch, blob, for_others=for_others)
                found = await to_thread.run_sync(touch)
            if call.request.is_detached:  # its time counts from here on
                lease = self._leases.take(key, call.holder, call.request.keep_s)
            await self._leases.write(lease.id)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._leases.release(lease.id, call.holder.uid, wholly=False)
            raise
        return Handed(
            blob.path, blob.size_bytes, found.st_dev, found.st_ino, blob.sha256, blob, lease.id
        )

    async def ready(self, call: Call, key: str, obj: Object | None, sha256: str | None) -> Blob:
        """Return the blob called *key*, checked, from the cache or else from its origin.

        The caller holds it already; raises as `held` does.
        """
        while True:
            blob = self._store.find(key)
            if blob is not None and await to_thread.run_sync(self._store.check, blob):
                return await self._vouched(blob, sha256)
            if obj is None:
                raise GoneError
            asker = _asker(obj)
            flown_by = asker
            try:
                work = partial(self._bring, obj, sha256)
                async with self._flights.board(key, work, asker=asker) as flight:
                    flown_by = flight.asker
                    call.board(flight.gauge)
                    with call.wanting(flight.demand, obj, key, sha256):
                        await flight.outcome()
            except MismatchError as error:
                if error.expected == sha256:
                    failure = errors.DataLoss(_mismatch(obj.title, error.found, sha256))
                    failure.shared_as(error.id)
                    raise failure from error
            except (errors.Unauthenticated, errors.PermissionDenied):
                if flown_by == asker:
                    raise  # else they were another caller's credentials: try one's own

    async def _bring(self, obj: Object, sha256: str | None, flight: Flight[Blob]) -> Blob:
        return await self._transfer.bring(obj, sha256, flight.gauge, flight.demand)

    async def _vouched(self, blob: Blob, sha256: str | None) -> Blob:
        """Return *blob* if it has the SHA-256 that the caller states; raises `DataLoss`."""
        if sha256 is None:
            return blob
        async with self._hashing:
            blob = self._store.find(blob.key) or blob
            if blob.sha256 is None:
                work = partial(self._store.learn_sha256, blob, sha256)
                blob = await to_thread.run_sync(work, limiter=self._hash_threads)
        if blob.sha256 != sha256:
            raise errors.DataLoss(_mismatch(blob.title, blob.sha256 or "", sha256))
        return blob


def _asker(obj: Object) -> str:
    """Tell callers of one object apart by what their URLs grant, without keeping it."""
    return hashlib.sha256(obj.url.encode()).hexdigest()


def _mismatch(name: str, found: str, stated: str | None) -> str:
    return (
        f"{name} has the SHA-256 {found}, not the stated {stated}; "
        "check the statement, or with whoever publishes the file"
    )
