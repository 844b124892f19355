"""One flight's work: an object version from its origin into the blob store."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread

from ckptd_daemon.sources.source import ChangedError, Object
from ckptd_daemon.store.blob import Blob, key_of, safe_name
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.evict import Shortage
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import CHUNK_BYTES, Partial
from ckptd_daemon.store.room import Space
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.downloader import Downloader
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.small import Small
from ckptd_daemon.transfer.soundness import (
    UnsoundError,
    is_telling,
    require_sound,
    want_telling,
    watch,
)
from ckptd_daemon.transfer.verdict import MismatchError, judged, unlike
from ckptd_daemon.transfer.verify import Hasher
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Transfer:
    """Brings object versions: room, partial, bytes, verification, publication."""

    def __init__(
        self,
        store: BlobStore,
        space: Space,
        buffers: Buffers,
        small: Small,
        downloader: Downloader,
        hasher: Hasher,
    ) -> None:
        self._store = store
        self._space = space
        self._buffers = buffers
        self._small = small
        self._downloader = downloader
        self._hasher = hasher

    async def bring(self, obj: Object, sha256: str | None, gauge: Gauge, demand: Demand) -> Blob:
        """Return the published blob; on any failure but a wrong version or hash, what came stays.

        Raises `ChangedError`, `MismatchError`, or one of our typed errors.
        """
        gauge.title = obj.title
        try:
            return await self._brought(obj, sha256, gauge, demand)
        except (MismatchError, UnsoundError) as error:  # bytes may be damaged on their way once
            logger.warning("%s is thrown away and fetched again: %s", obj.title, error)
        try:
            return await self._brought(obj, sha256, gauge, demand)
        except MismatchError as error:
            if error.is_of_origin:
                raise errors.DataLoss(unlike(obj, error)) from error
            raise
        except UnsoundError as error:
            raise errors.DataLoss(str(error)) from error

    async def _brought(self, obj: Object, sha256: str | None, gauge: Gauge, demand: Demand) -> Blob:
        partial = self._partial(obj)
        async with self._admitted(obj, partial, gauge, demand):
            try:
                blob = await self._brought_at_once(obj, partial, sha256, gauge, demand)
                return blob or await self._brought_by_and_by(obj, partial, sha256, gauge, demand)
            except errors.ResourceExhausted as error:
                raise await self._full(obj, partial, error) from error

    async def _brought_at_once(
        self, obj: Object, partial: Partial, sha256: str | None, gauge: Gauge, demand: Demand
    ) -> Blob | None:
        """Bring what is small if nothing of it is here; None if it has to come by and by."""
        wanted = sha256 or obj.checksums.sha256

        def begin() -> bool:
            if partial.path.exists() or self._remains(partial):
                return False
            partial.begin()
            return True

        def finish(data: memoryview) -> Blob:
            found = "" if wanted is None else hashlib.sha256(data).hexdigest()
            return self._published(obj, partial, len(data), sha256, found, demand)

        if not self._small.is_for(obj, demand):
            return None
        return await self._small.bring(obj, partial, begin, finish, gauge, demand)

    async def _brought_by_and_by(
        self, obj: Object, partial: Partial, sha256: str | None, gauge: Gauge, demand: Demand
    ) -> Blob:
        async with self._opened(obj, partial, gauge):
            demand.open(partial)
            size_bytes, found = await self._filled(obj, partial, sha256, gauge, demand)
            publish = functools.partial(
                self._published, obj, partial, size_bytes, sha256, found, demand
            )
            return await to_thread.run_sync(publish)

    def _published(
        self,
        obj: Object,
        partial: Partial,
        size_bytes: int,
        sha256: str | None,
        found: str,
        demand: Demand,
    ) -> Blob:
        """Judge and publish a filled *partial*, whose SHA-256 is *found* if it was computed."""
        try:
            verification = judged(obj, partial, size_bytes, sha256, found)
        except MismatchError as error:
            if error.is_of_origin or demand.is_stated_by_all(error.expected):
                raise
            sha256 = None
            verification = judged(obj, partial, size_bytes, None, found)  # right for the others
        require_sound(obj, partial, size_bytes, is_stated=sha256 is not None)
        blob = self._store.publish(partial, size_bytes, found or None, verification)
        self._discard_remains(blob.key)  # repaired
        return blob

    def _partial(self, obj: Object) -> Partial:
        header = Header(
            object_id=obj.id,
            title=obj.title,
            version=obj.version,
            name=safe_name(obj.name),
            size_bytes=obj.size_bytes,
            chunk_bytes=CHUNK_BYTES,
            is_resumable=obj.is_rangeable,
        )
        partial = Partial(self._store.partial_path(key_of(obj.id, obj.version)), header)
        known = obj.chunk_crc32c if len(obj.chunk_crc32c) == header.chunk_count else ()
        partial.expected = dict(enumerate(known))
        return partial

    @asynccontextmanager
    async def _admitted(
        self, obj: Object, partial: Partial, gauge: Gauge, demand: Demand
    ) -> AsyncIterator[None]:
        """Have room on the disk for all of it inside the block."""

        def wait(shortage: Shortage) -> None:
            cause = Cause.QUOTA if shortage.room.is_short_of_quota else Cause.DISK
            gauge.enter(Phase.WAITING, cause, str(shortage))

        gauge.enter(Phase.WAITING, Cause.DISK)
        async with self._space.book(partial.path.name, obj.size_bytes or 0, wait, demand.holds):
            yield

    @asynccontextmanager
    async def _opened(self, obj: Object, partial: Partial, gauge: Gauge) -> AsyncIterator[None]:
        """Have the object's partial open inside the block, with what is here of it already."""
        key = partial.path.name
        try:
            await self._resume(partial, gauge)
            yield
        except (ChangedError, MismatchError, UnsoundError, errors.DataLoss):
            partial.close()
            await to_thread.run_sync(self._store.remove, partial.path)
            await to_thread.run_sync(self._discard_remains, key)  # they may be what is wrong
            raise
        finally:
            partial.close()
            if not partial.header.is_resumable:  # nobody could go on with it
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(self._store.remove, partial.path)

    async def _resume(self, partial: Partial, gauge: Gauge) -> None:
        """Open *partial*, and take over what is sound of an earlier life or of a damaged blob."""
        claimed, remains = await to_thread.run_sync(self._begun, partial)
        if not (claimed or remains):
            return
        gauge.enter(Phase.VERIFYING, Cause.HASH)
        async with self._buffers.lend() as buffer:
            for index, crc in sorted(claimed.items()):
                await to_thread.run_sync(partial.recheck, index, crc, buffer)
            await self._repair(partial, remains, buffer)

    async def _repair(self, partial: Partial, remains: list[Blob], buffer: memoryview) -> None:
        """Copy the sound chunks of a damaged blob of this version; the others are known by CRC.

        Into a new file: somebody may still read the damaged one.
        """
        header = partial.header
        for blob in remains:
            cut = blob.size_bytes, blob.chunk_bytes, len(blob.crc32c)
            if cut != (header.size_bytes, header.chunk_bytes, header.chunk_count):
                continue
            partial.expected = {**dict(enumerate(blob.crc32c)), **partial.expected}
            for index in partial.missing():
                crc = partial.expected[index]
                await to_thread.run_sync(partial.adopt, index, blob.path, crc, buffer)
            count = len(partial.missing())
            logger.info("%s is repaired: %d chunks are fetched again", header.title, count)

    def _discard_remains(self, key: str) -> None:
        for blob in self._store.remains(key):
            self._store.remove(blob.path.parent)

    async def _full(
        self, obj: Object, partial: Partial, error: errors.ResourceExhausted
    ) -> errors.ResourceExhausted:
        """Return what to say when the disk is full though there was room: others have filled it."""
        if error.evictable_bytes is not None:
            return error  # there was no room for more of what nobody knew the size of
        need = (obj.size_bytes or partial.landed_bytes) - partial.landed_bytes
        free, evictable = await self._space.left()
        return errors.ResourceExhausted(
            f"the disk was filled by others while {obj.title} was fetched: {need} bytes are "
            f"missing, {free} are free and {evictable} can be evicted; what came is kept: free "
            "some disk and ask again",
            need_bytes=need,
            free_bytes=free,
            evictable_bytes=evictable,
        )

    def _begun(self, partial: Partial) -> tuple[dict[int, int], list[Blob]]:
        """Open *partial*; returns what its journal claims, and the blobs that it may take from.

        What another version of ckptd began gives way.
        """
        try:
            claimed = partial.open()
        except errors.FailedPrecondition as error:
            logger.warning("partial %s is set aside: %s", partial.path.name, error)
            self._store.set_aside(partial.path)
            claimed = partial.open()
        return claimed, self._remains(partial)

    def _remains(self, partial: Partial) -> list[Blob]:
        """Return the blobs whose sound chunks *partial* may take over."""
        if not partial.header.is_resumable:
            return []
        key = partial.path.name
        doubted = self._store.find(key) if partial.expected else None  # unlike what is known
        return [*self._store.remains(key), *([] if doubted is None else [doubted])]

    async def _filled(
        self, obj: Object, partial: Partial, sha256: str | None, gauge: Gauge, demand: Demand
    ) -> tuple[int, str]:
        """Fill *partial*; returns its size and, if one was stated, the SHA-256 that it has.

        Raises `UnsoundError` as soon as what has come cannot be a file of its kind, unless there is
        *sha256*, which knows better.
        """
        tells = sha256 is None and is_telling(obj, partial)
        sha256 = sha256 or obj.checksums.sha256
        if sha256 is None and not tells:
            return await self._downloader.fill(obj, partial, gauge, demand), ""
        digests: list[str | None] = []
        failures: list[Exception] = []
        watching = anyio.CancelScope()
        size_bytes = 0

        async def beside(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001  re-raised outside the group
                failures.append(error)
                tasks.cancel_scope.cancel()

        async def trail() -> None:
            digests.append(await self._hasher.trail(partial, demand))

        async def look() -> None:
            with watching:
                await watch(obj, partial, demand)

        async def fill() -> None:
            nonlocal size_bytes
            size_bytes = await self._downloader.fill(obj, partial, gauge, demand)
            watching.cancel()
            if sha256 is not None:
                gauge.enter(Phase.VERIFYING, Cause.HASH)

        async with anyio.create_task_group() as tasks:
            if tells:
                want_telling(obj, partial, demand)
                tasks.start_soon(beside, look)
            if sha256 is not None:
                tasks.start_soon(beside, trail)
            await beside(fill)
        if failures:
            raise failures[0]
        if sha256 is None:
            return size_bytes, ""
        return size_bytes, digests[0] or await self._hasher.digest(partial, size_bytes)
