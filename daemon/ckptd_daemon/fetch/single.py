"""One file: from its reference to a leased path."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.answers import Answers, First
from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.fetch.lending import GoneError, Lender
from ckptd_daemon.sources import files
from ckptd_daemon.sources.source import ChangedError, Object
from ckptd_daemon.store.blob import Blob, key_of
from ckptd_daemon.store.blobs import BlobStore
from ckptd_proto import errors, refs
from ckptd_proto.urls import display, identity

CHANGES_MAX = 2
AFRESH = "changed at the origin; fetched afresh"

T = TypeVar("T")
Take = Callable[[str, Object | None, str | None], Awaitable[T]]


class Files:
    """Finds single files: here already, known by their hash, in the cache, or at their origin."""

    def __init__(
        self,
        config: Config,
        store: BlobStore,
        versions: Answers[Object],
        opening: First[Object],
        lender: Lender,
        hash_threads: CapacityLimiter,
    ) -> None:
        self._config = config
        self._store = store
        self._versions = versions
        self._open = opening
        self._lender = lender
        self._hash_threads = hash_threads

    async def handed(self, call: Call) -> Handed:
        """Hand over what the call asks for; raises one of our typed errors."""
        ref = refs.parse(call.request.ref, call.request.sha256)
        if ref.path is not None:
            return await self._local(call, ref.path, ref.sha256)
        find = self.found_here if call.request.is_here else self.found
        return await find(call, ref.url or "", ref.sha256, partial(self._lender.held, call))

    async def found(self, call: Call, url: str, sha256: str | None, take: Take[T]) -> T:
        """Have *take* take what *url* names, whose bytes hash to *sha256* if that is stated.

        It gets the key of the blob, and the object if the blob may have to be fetched.
        """
        is_own = call.holder.uid == os.geteuid()
        if sha256 is not None and is_own:
            with suppress(GoneError):
                return await _cached(self._store.with_sha256(sha256), sha256, take)
        if call.request.offline:
            return await self._offline(call, url, sha256, take)
        for _ in range(CHANGES_MAX):
            obj = await self._versions.of(
                url, only_public=not is_own, on_board=call.board, first=self._first(call, url)
            )
            try:
                return await take(key_of(obj.id, obj.version), obj, sha256)
            except ChangedError:
                call.note = AFRESH
                self._versions.forget(url, only_public=not is_own)
        raise errors.Aborted(
            f"{display(url)} changed {CHANGES_MAX} times while it was fetched; "
            "ask again when it is settled"
        )

    def _first(self, call: Call, url: str) -> First[Object] | None:
        """Have a file come with the answer about it, if it is likely to be small and to come."""
        is_likely = call.request.is_one_of_many and call.is_awaited()
        return self._open if is_likely and not self._store.has_met(identity(url)) else None

    async def found_here(self, call: Call, url: str, sha256: str | None, take: Take[T]) -> T:
        """Do as `found` does if nothing has to be asked or fetched; else raises `GoneError`."""
        blob = self._here(url, sha256, call.request, is_own=call.holder.uid == os.geteuid())
        if blob is not None and sha256 not in {None, blob.sha256}:
            raise GoneError  # it has another one, or it takes a while to tell
        return await _cached(blob, sha256, take)

    def _here(self, url: str, sha256: str | None, request: Request, *, is_own: bool) -> Blob | None:
        if sha256 is not None and is_own and (blob := self._store.with_sha256(sha256)) is not None:
            return blob
        if request.offline:
            return self._store.newest_of(identity(url)) if is_own else None
        obj = self._versions.known(url, only_public=not is_own)
        return None if obj is None else self._store.find(key_of(obj.id, obj.version))

    async def _local(self, call: Call, path: Path, sha256: str | None) -> Handed:
        below = None if call.holder.uid == os.geteuid() else self._config.read_roots
        look = partial(files.look, path, sha256, below=below)
        found = await to_thread.run_sync(look, limiter=self._hash_threads if sha256 else None)
        return Handed(path, found.size_bytes, found.device, found.inode, sha256)

    async def _offline(self, call: Call, url: str, sha256: str | None, take: Take[T]) -> T:
        if call.holder.uid != os.geteuid():
            text = (
                "only the origin can tell what a user other than the daemon's may read, and it is "
                "not asked: you, CKPTD_OFFLINE, or the daemon's setting offline says so"
            )
            raise errors.PermissionDenied(text)
        try:
            return await _cached(self._store.newest_of(identity(url)), sha256, take)
        except GoneError:
            text = (
                f"{display(url)} is not in the cache; to fetch it, ask without `offline` (which may "
                "come from CKPTD_OFFLINE, or be the daemon's setting)"
            )
            raise errors.NotFound(text) from None


async def _cached(blob: Blob | None, sha256: str | None, take: Take[T]) -> T:
    """Take *blob* as the cache has it; raises `GoneError`."""
    if blob is None:
        raise GoneError
    return await take(blob.key, None, sha256)
