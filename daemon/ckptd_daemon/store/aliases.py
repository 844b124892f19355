"""SHA-256 of blobs for which nobody stated one, computed while there is nothing else to do.

By it a reference that states a hash is answered without asking anybody. Each blob is read by the
scrubber, chunk by chunk, so that rot is found on the way. It is a matter of minutes whether it is
known: nothing waits for it, and it waits for everything.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import anyio
from anyio import to_thread

from ckptd_daemon.store.blob import Blob
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.scrub import Scrubber
from ckptd_proto import errors

logger = logging.getLogger(__name__)

LOOK_S = 0.5


class Aliases:
    """Learns the SHA-256 of one blob after the other."""

    def __init__(
        self, store: BlobStore, scrubber: Scrubber, is_busy: Callable[[], bool], after_s: float
    ) -> None:
        self._store = store
        self._scrubber = scrubber  # nobody else's: it may pause for long
        self._is_busy = is_busy
        self._after_s = after_s
        self._poked = anyio.Event()
        self._poked.set()  # there are the blobs of earlier lives
        self._unread: set[str] = set()  # keys of blobs that the disk did not give

    def __repr__(self) -> str:
        left = sum(blob.sha256 is None for blob in self._store)
        return f"<Aliases [{left} of {len(self._store)} not known]>"

    def poke(self) -> None:
        """Tell that there may be another blob."""
        self._poked.set()

    async def keep(self) -> None:
        """Learn what there is to learn whenever all is quiet; runs for ever."""
        while True:
            await self._poked.wait()
            self._poked = anyio.Event()
            await self._quiet()
            while (blob := self._next()) is not None:
                await self._learn(blob)

    def _next(self) -> Blob | None:
        """Return the youngest blob without a hash: it is the likeliest to be asked for."""
        unknown = (
            blob for blob in self._store if blob.sha256 is None and blob.key not in self._unread
        )
        return max(unknown, key=lambda blob: blob.published_at, default=None)

    async def _learn(self, blob: Blob) -> None:
        digest = hashlib.sha256()
        try:
            finding = await self._scrubber.check(blob, digest, self._turn)
            if finding is None:  # gone, or replaced
                return
            if not finding.damaged_chunks:
                work = self._store.note_sha256
                await to_thread.run_sync(work, blob, digest.hexdigest())
        except errors.CkptdError as error:
            logger.warning("the SHA-256 of %s is not known: %s", blob.title, error)
            self._unread.add(blob.key)

    async def _turn(self) -> None:
        """Wait before the next chunk if there is something else to do."""
        if self._is_busy():
            await self._quiet()

    async def _quiet(self) -> None:
        """Return when nothing has been going on for `after_s`."""
        since = anyio.current_time()
        while self._is_busy() or anyio.current_time() - since < self._after_s:
            await anyio.sleep(min(LOOK_S, max(self._after_s, 0.05)))
            if self._is_busy():
                since = anyio.current_time()
