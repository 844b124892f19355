"""A directory of a remote: its listing, its files by the flights of single ones, one tree."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.answers import Answers
from ckptd_daemon.fetch.call import Call, Handed
from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.fetch.gathering import Gathering
from ckptd_daemon.fetch.selection import Selection
from ckptd_daemon.sessions import Process
from ckptd_daemon.sources.directories import directory_of
from ckptd_daemon.sources.http import file_name
from ckptd_daemon.sources.listing import Entry, Listing
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.leases import Leases
from ckptd_daemon.store.snapshots import NOTE, Snapshot, SnapshotStore
from ckptd_daemon.transfer.progress import Phase
from ckptd_proto import errors, refs
from ckptd_proto.urls import display, identity

TRIES = 3
EXAMPLES = 3


class Directories:
    """Brings directories; two that overlap share their files, and single fetches do, too."""

    def __init__(
        self,
        config: Config,
        tasks: TaskGroup,
        gathering: Gathering,
        listings: Answers[Listing],
        store: BlobStore,
        snapshots: SnapshotStore,
        leases: Leases,
    ) -> None:
        self._gathering = gathering
        self._listings = listings
        self._store = store
        self._snapshots = snapshots
        self._leases = leases
        self.flights: Flights[Snapshot] = Flights(
            tasks, linger_s=config.linger_s, failure_s=config.failure_s
        )

    def holders(self, key: str) -> int:
        """Return how many leases hold the blob called *key* as part of a directory."""
        of_trees = sum(self._leases.on(snapshot) for snapshot in self._snapshots.having(key))
        return of_trees + self._gathering.on(key)

    def last(self, key: str, holder: Process) -> bool:
        """Whether *holder* has a directory until it ends that the blob called *key* is part of."""
        return any(self._leases.lasts(one, holder) for one in self._snapshots.having(key))

    async def handed(self, call: Call, url: str) -> Handed:
        """Hand over the tree of what the call asks for of *url*; raises one of our typed errors."""
        if refs.parse(call.request.ref, call.request.sha256).sha256 is not None:
            text = (
                f"{display(url)} is a directory, and a SHA-256 can only be stated for a file; "
                "its manifest may state one for each"
            )
            raise errors.InvalidArgument(text)
        selection = Selection.of(call.request.include, call.request.exclude)
        for_others = call.holder.uid != os.geteuid()
        for _ in range(TRIES):
            snapshot = await self._snapshot(call, url, selection)
            request = call.request
            lease = self._leases.take(snapshot.key, call.holder, request.keep_s, request.hold)
            found = None
            try:
                use = partial(self._snapshots.use, snapshot, for_others=for_others)
                found = await to_thread.run_sync(use)
                if found is not None:
                    await self._leases.write(lease.id)
                    path = self._snapshots.path(snapshot)
                    size = sum(blob.size_bytes for blob in self._blobs(snapshot))
                    return Handed(path, size, found.st_dev, found.st_ino, None, None, lease.id)
            except BaseException:
                found = None
                raise
            finally:
                if found is None:
                    with anyio.CancelScope(shield=True):
                        await self._leases.release(lease.id, call.holder.uid, wholly=False)
        raise errors.ResourceExhausted(
            f"files of {display(url)} were evicted before all of them were here, {TRIES} times; "
            "the cache is too small for it: raise cache_bytes, or take less of it with `include`"
        )

    def _blobs(self, snapshot: Snapshot) -> list[Blob]:
        found = (self._store.find(key) for key in snapshot.files.values())
        return [blob for blob in found if blob is not None]

    async def _snapshot(self, call: Call, url: str, selection: Selection) -> Snapshot:
        only_public = call.holder.uid != os.geteuid()
        if call.request.offline:
            return await self._known(url, selection, only_public=only_public)
        listing = await self._listings.of(url, only_public=only_public, on_board=call.board)
        by_path = {entry.path: entry for entry in listing.entries}
        entries = [by_path[path] for path in selection.chosen(by_path)]
        if not entries:
            raise _nothing_chosen(listing, selection)
        work = partial(self._bring, call.holder.uid, listing, entries, selection)
        async with self.flights.board(_key(listing, entries, selection, only_public), work) as one:
            call.board(one.gauge)
            with one.demand.awaited(call.is_awaited, holds=call.holds):
                return await one.outcome()

    async def _known(self, url: str, selection: Selection, *, only_public: bool) -> Snapshot:
        """Return the newest snapshot here that has all of the selection; opens no socket."""
        if only_public:
            text = (
                "only the origin can tell what a user other than the daemon's may read; "
                "ask without `offline`"
            )
            raise errors.PermissionDenied(text)
        asked = selection.include, selection.exclude
        for snapshot in self._snapshots.of(identity(directory_of(url))):
            if (snapshot.include, snapshot.exclude) not in {asked, ((), ())}:
                continue
            files = {path: snapshot.files[path] for path in selection.chosen(snapshot.files)}
            if files and all(self._store.find(key) for key in files.values()):
                found = Snapshot(snapshot.object_id, snapshot.title, snapshot.name, *asked, files)
                with self._gathering.holding() as hold:
                    hold.add(*files.values())
                    await to_thread.run_sync(self._snapshots.publish, found)
                return found
        raise errors.NotFound(
            f"no snapshot of {display(url)} with all of this is in the cache; "
            "ask without `offline` to fetch it"
        )

    async def _bring(
        self,
        uid: int,
        listing: Listing,
        entries: Sequence[Entry],
        selection: Selection,
        flight: Flight[Snapshot],
    ) -> Snapshot:
        """Bring every file, and make the tree."""
        with self._gathering.holding() as hold:
            blobs = await self._gathering.bring(uid, listing, entries, hold, flight)
            snapshot = Snapshot(
                identity(listing.url),
                listing.title,
                _tree_name(listing.url),
                selection.include,
                selection.exclude,
                {path: blob.key for path, blob in sorted(blobs.items())},
            )
            flight.gauge.enter(Phase.VERIFYING)
            await to_thread.run_sync(self._snapshots.publish, snapshot)
        await to_thread.run_sync(self._snapshots.sweep, self._leases.__contains__)
        return snapshot


def _tree_name(url: str) -> str:
    name = file_name(url.rstrip("/")) if urlsplit(url).path.strip("/") else "files"
    return "files" if name == NOTE else name


def _key(
    listing: Listing, entries: Sequence[Entry], selection: Selection, only_public: bool
) -> str:
    """Name what is to be brought: the same for all who ask for it with the same right."""
    fields = [listing.url, list(map(repr, entries)), selection.include, selection.exclude]
    return hashlib.sha256(json.dumps([*fields, only_public]).encode()).hexdigest()[:40]


def _nothing_chosen(listing: Listing, selection: Selection) -> errors.NotFound:
    count = len(listing.entries)
    if selection.is_all:
        return errors.NotFound(f"{listing.title} has no files")
    some = ", ".join(entry.path for entry in listing.entries[:EXAMPLES])
    return errors.NotFound(
        f"the patterns choose none of the {count} files of {listing.title} (such as {some}); "
        "a pattern is matched against the whole relative path"
    )
