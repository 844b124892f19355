"""From an object version to a leased blob: out of the cache, else by one flight for all."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from functools import partial

import anyio
from anyio import CapacityLimiter, to_thread

from ckptd_daemon.fetch.call import Call, Handed
from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.sources.source import ChangedError, Object
from ckptd_daemon.store.blob import Blob, Verification, key_of
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.leases import Leases
from ckptd_daemon.store.partials import CHUNK_BYTES
from ckptd_daemon.transfer.soundness import UnsoundError
from ckptd_daemon.transfer.transfer import Transfer
from ckptd_daemon.transfer.verdict import MismatchError
from ckptd_proto import errors

logger = logging.getLogger(__name__)


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
            blob, found = await self._used(call, key, obj, sha256)
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

    async def _used(
        self, call: Call, key: str, obj: Object | None, sha256: str | None
    ) -> tuple[Blob, os.stat_result]:
        for_others = call.holder.uid != os.geteuid()
        while True:  # it may be found damaged, and set aside, at any time
            blob = self._store.find(key)
            if blob is None or sha256 not in {None, blob.sha256}:
                blob = await self.ready(call, key, obj, sha256)
            found = self._store.glance(blob, for_others=for_others)
            if found is None:
                use = partial(self._store.use, blob, for_others=for_others)
                found = await to_thread.run_sync(use)
            if found is not None:
                return blob, found

    async def ready(self, call: Call, key: str, obj: Object | None, sha256: str | None) -> Blob:
        """Return the blob called *key*, checked, from the cache or else from its origin.

        The caller holds it already; raises as `held` does.
        """
        while True:
            blob = self._store.find(key)
            work = None if obj is None else partial(self._bring, obj, sha256)
            if blob is not None and await self._is_whole(blob):
                blob = await self._hashed(blob, sha256)
                if blob is None:
                    continue
                if _is_as_stated(blob, obj, sha256):
                    return blob
                if obj is None or blob.verification is not Verification.TRANSPORT or blob.is_second:
                    return _require_sha256(blob, sha256)
                logger.warning("%s is unlike what is stated, and fetched once more", blob.title)
                work = partial(self._bring_second, obj)
            if obj is None or work is None:
                raise GoneError
            right = _right(obj)
            # what is no sound file of its kind for others may be right for who knows its SHA-256
            asker = right if sha256 is None else f"{right} {sha256}"
            flown_by = asker
            try:
                async with self._flights.board(key, work, asker=asker) as flight:
                    flown_by = flight.asker
                    call.board(flight.gauge)
                    demand = flight.demand
                    awaited = demand.awaited(call.is_awaited, sha256, call.holds)
                    with awaited, call.wanting(demand, obj, key, sha256):
                        await flight.outcome()
            except MismatchError as error:
                if error.expected == sha256:
                    failure = errors.DataLoss(_mismatch(obj.title, error.found, sha256))
                    failure.shared_as(error.id)
                    raise failure from error
            except (errors.Unauthenticated, errors.PermissionDenied):
                if flown_by.partition(" ")[0] == right:
                    raise  # else they were another caller's credentials: try one's own
            except errors.DataLoss as error:
                is_known_better = sha256 is not None and flown_by != asker
                if not (is_known_better and isinstance(error.__cause__, UnsoundError)):
                    raise

    async def _is_whole(self, blob: Blob) -> bool:
        """Tell whether the blob's file is what was published; a crowd that waited for it asks."""
        if self._store.glance(blob) is not None:
            return True
        return await to_thread.run_sync(self._store.check, blob)

    async def _bring(self, obj: Object, sha256: str | None, flight: Flight[Blob]) -> Blob:
        try:
            return await self._transfer.bring(obj, sha256, flight.gauge, flight.demand)
        except ChangedError as error:
            logger.warning("what came of %s is thrown away: %s", obj.title, error)
            raise

    async def _bring_second(self, obj: Object, flight: Flight[Blob]) -> Blob:
        """Bring what the cache has once more, beside it: its origin may have been wrong then.

        Whatever it is, there is no third time for a statement that it does not match.
        """
        try:
            return await self._transfer.bring(obj, None, flight.gauge, flight.demand)
        except errors.DataLoss:
            if (first := self._store.find(key_of(obj.id, obj.version))) is not None:
                await to_thread.run_sync(self._store.settle_for, first)
            raise

    async def _hashed(self, blob: Blob, sha256: str | None) -> Blob | None:
        """Return *blob* with its SHA-256, if the caller states one; None if it is of no use."""
        if sha256 is None:
            return blob
        async with self._hashing:
            blob = self._store.find(blob.key) or blob
            if blob.sha256 is None:
                work = partial(self._store.learn_sha256, blob, sha256)
                return await to_thread.run_sync(work, limiter=self._hash_threads)
        return blob


def _is_as_stated(blob: Blob, obj: Object | None, sha256: str | None) -> bool:
    """Tell whether *blob* has the SHA-256 that is stated, and the sums of its chunks."""
    if sha256 is not None and blob.sha256 != sha256:
        return False
    sums = () if obj is None else obj.chunk_crc32c
    return not sums or blob.chunk_bytes != CHUNK_BYTES or blob.crc32c == sums


def _require_sha256(blob: Blob, sha256: str | None) -> Blob:
    """Raise `DataLoss` unless *blob* has the SHA-256 that is stated, if one is."""
    if sha256 is None or blob.sha256 == sha256:
        return blob
    text = _mismatch(blob.title, blob.sha256 or "", sha256)
    if blob.is_second:
        text += f"; it was fetched twice: `ckptd cache rm --force {blob.key}` has it fetched anew"
    error = errors.DataLoss(text)
    error.shared_as(secrets.token_hex(4))
    logger.warning("the cache has another file than is stated: %s", error)
    raise error


def _right(obj: Object) -> str:
    """Tell callers of one object apart by what their URLs grant, without keeping it."""
    return hashlib.sha256(obj.url.encode()).hexdigest()


def _mismatch(name: str, found: str, stated: str | None) -> str:
    return (
        f"{name} has the SHA-256 {found}, not the stated {stated}; "
        "check the statement, or with whoever publishes the file"
    )
