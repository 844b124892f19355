"""One file: from its reference to a leased path."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from anyio import CapacityLimiter, to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.call import Call, Handed
from ckptd_daemon.fetch.lending import GoneError, Lender
from ckptd_daemon.fetch.versions import Versions
from ckptd_daemon.sources import files
from ckptd_daemon.sources.source import ChangedError
from ckptd_daemon.store.blobs import BlobStore, key_of
from ckptd_proto import errors, refs
from ckptd_proto.urls import display, identity

CHANGES_MAX = 2


class Files:
    """Finds single files: here already, known by their hash, in the cache, or at their origin."""

    def __init__(
        self,
        config: Config,
        store: BlobStore,
        versions: Versions,
        lender: Lender,
        hash_threads: CapacityLimiter,
    ) -> None:
        self._config = config
        self._store = store
        self._versions = versions
        self._lender = lender
        self._hash_threads = hash_threads

    async def handed(self, call: Call) -> Handed:
        """Hand over what the call asks for; raises one of our typed errors."""
        ref = refs.parse(call.request.ref, call.request.sha256)
        if ref.path is not None:
            return await self._local(call, ref.path, ref.sha256)
        return await self.remote(call, ref.url or "", ref.sha256)

    async def remote(self, call: Call, url: str, sha256: str | None) -> Handed:
        """Hand over what *url* names, whose bytes hash to *sha256* if that is stated."""
        is_own = call.holder.uid == os.geteuid()
        if sha256 is not None and is_own:
            with suppress(GoneError):
                return await self._lender.cached(call, self._store.with_sha256(sha256), sha256)
        if call.request.offline:
            return await self._offline(call, url, sha256)
        for _ in range(CHANGES_MAX):
            obj = await self._versions.of(url, only_public=not is_own, on_board=call.board)
            try:
                return await self._lender.held(call, key_of(obj.id, obj.version), obj, sha256)
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
        if call.holder.uid != os.geteuid():
            text = (
                "only the origin can tell what a user other than the daemon's may read, and it is "
                "not asked: you, CKPTD_OFFLINE, or the daemon's setting offline says so"
            )
            raise errors.PermissionDenied(text)
        try:
            newest = self._store.newest_of(identity(url))
            return await self._lender.cached(call, newest, sha256)
        except GoneError:
            text = (
                f"{display(url)} is not in the cache; to fetch it, ask without `offline` (which may "
                "come from CKPTD_OFFLINE, or be the daemon's setting)"
            )
            raise errors.NotFound(text) from None
