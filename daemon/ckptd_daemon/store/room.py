"""Disk space for what is fetched: booked before the first byte, until it has landed or failed.

Who does not fit waits in line for others to leave; what nobody uses is evicted, by unlinking only.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import anyio
from anyio import to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.store import durable, readers
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.evict import Entry, Holders, Room, Shortage, surplus, victims

logger = logging.getLogger(__name__)

Holds = Callable[[str], bool]
"""Of the key of a blob: whether somebody holds it."""

RECHECK_S = 2.0  # nobody tells when a file is closed, or a disk gets room
LOOK_S = 0.05  # for so long nobody else is thought to fill a disk that has room to spare


@dataclass(slots=True)
class _Spare:
    """Room that is there in any case: who fits into it is let in at once."""

    n_bytes: int = 0
    until: float = -inf


@dataclass(slots=True)
class _Waiter:
    """Somebody in line."""

    need_bytes: int
    holds: Holds
    """Tells which blobs it holds itself for as long as it waits."""
    passed_bytes: int = 0
    """What was let in before it though it came later."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """What the disk says. Allocated bytes of each directory."""

    free_bytes: int
    total_bytes: int
    partials: dict[str, Entry]
    quarantined: list[Entry]


class Space:
    """The room below the cache directory. Of the event loop."""

    def __init__(self, store: BlobStore, leases_on: Callable[[str], int], config: Config) -> None:
        self._store = store
        self._leases_on = leases_on
        self._config = config
        self._booked: dict[str, int] = {}  # the size that each may grow to
        self._holds: dict[str, Holds] = {}  # of those who wait for each
        self._line: list[_Waiter] = []
        self._spare = _Spare()
        self._deciding = anyio.Lock()  # one at a time, so that the numbers stay true
        self._moved = anyio.Event()

    def __repr__(self) -> str:
        return f"<Space [{len(self._booked)} booked, {len(self._line)} waiting]>"

    def poke(self) -> None:
        """Tell that something was given back: a lease, a blob."""
        self._moved.set()
        self._moved = anyio.Event()

    @asynccontextmanager
    async def book(
        self,
        key: str,
        size_bytes: int,
        tell: Callable[[Shortage], object],
        holds: Holds = lambda _: False,
    ) -> AsyncIterator[None]:
        """Hold room for *key* to grow to *size_bytes* inside the block.

        Waits its turn while it would fit once others have left, and tells why. Raises
        `ResourceExhausted` with the numbers, at once if it can never fit, or only without what
        those who ask for it hold themselves, which *holds* tells.
        """
        waiter = _Waiter(size_bytes, holds)
        self._line.append(waiter)
        await self._let_in(key, waiter, tell)
        self._holds[key] = holds
        try:
            yield
        finally:
            del self._booked[key], self._holds[key]
            self.poke()

    async def grow(self, key: str, size_bytes: int) -> None:
        """Let *key*, which is booked, grow to *size_bytes*: nobody knew its size beforehand.

        It goes before those in line: they may be waiting for it to end.
        """
        if size_bytes > self._booked[key]:
            waiter = _Waiter(size_bytes, self._holds[key])
            self._line.insert(0, waiter)
            await self._let_in(key, waiter, lambda _: None)

    async def _let_in(self, key: str, waiter: _Waiter, tell: Callable[[Shortage], object]) -> None:
        since = anyio.current_time()
        try:
            while True:
                moved = self._moved
                async with self._deciding:
                    is_clear = await self._is_clear(waiter)
                    shortage = None if is_clear else await self._shortage(key, waiter)
                    if shortage is None:
                        self._enter(key, waiter)
                        return
                waited_s = anyio.current_time() - since
                if (
                    not shortage.may_pass
                    or shortage.is_own
                    or waited_s >= self._config.wait_for_room_s
                ):
                    raise shortage.error(waited_s)
                tell(shortage)
                with anyio.move_on_after(min(RECHECK_S, self._config.wait_for_room_s - waited_s)):
                    await moved.wait()
        finally:
            self._line.remove(waiter)
            self.poke()

    def _enter(self, key: str, waiter: _Waiter) -> None:
        self._booked[key] = waiter.need_bytes
        self._spare.n_bytes -= waiter.need_bytes
        if self._line[0] is not waiter:
            self._line[0].passed_bytes += waiter.need_bytes

    async def _is_clear(self, waiter: _Waiter) -> bool:
        """Tell, at the cost of one look for many, whether there is room beyond all doubt.

        What is booked counts as not written yet, and nothing is let in above the high watermark.
        """
        if self._line[0] is not waiter:
            return False
        if anyio.current_time() >= self._spare.until:
            spare = await to_thread.run_sync(self._look, dict(self._booked))
            self._spare = _Spare(spare, anyio.current_time() + LOOK_S)
        return waiter.need_bytes <= self._spare.n_bytes

    async def _shortage(self, key: str, waiter: _Waiter) -> Shortage | None:
        """Make room, if it can be had now; else say why not."""
        open_files: set[Path] = set()
        while True:
            survey = await to_thread.run_sync(self._survey)
            candidates, holders = self._sorted(survey, key, open_files, waiter.holds)
            evictable = sum(entry.size_bytes for entry in candidates)
            room = self._room(survey, key)
            ahead = self._line.index(waiter)
            shortage = Shortage(waiter.need_bytes, room, evictable, holders, ahead)
            first = self._line[0]
            if ahead and not shortage.leaves_room_for(first.need_bytes + first.passed_bytes):
                return shortage
            chosen = victims(candidates, room, waiter.need_bytes)
            if chosen is None:
                return shortage
            in_use = await to_thread.run_sync(self._in_use, chosen)
            open_files |= in_use
            if not in_use and await self._drop(chosen):
                spared = [entry for entry in candidates if entry not in chosen and entry.key != key]
                await self._tidy(spared, room, waiter.need_bytes, chosen)
                return None

    async def _tidy(
        self, spared: list[Entry], room: Room, need_bytes: int, dropped: list[Entry]
    ) -> None:
        """Come down to the low watermark, so that not every newcomer has to evict."""
        if room.quota is None:
            return
        used = room.used + need_bytes - sum(entry.size_bytes for entry in dropped)
        high = int(room.quota * self._config.quota_high_percent / 100)
        low = int(room.quota * self._config.quota_low_percent / 100)
        chosen = surplus(spared, used, high_bytes=high, low_bytes=low)
        in_use = await to_thread.run_sync(self._in_use, chosen)
        await self._drop([entry for entry in chosen if entry.path not in in_use])

    async def _drop(self, entries: list[Entry]) -> bool:
        """Unlink *entries*; False if somebody has come to hold one of them meanwhile."""
        for entry in entries:
            if self._is_held(entry):
                return False
            logger.info("evicting %s", entry.path.name)
            if self._is_blob(entry):
                self._store.forget(entry.key)
            await to_thread.run_sync(self._store.remove, entry.path)
        return True

    def _is_blob(self, entry: Entry) -> bool:
        blob = self._store.find(entry.key)
        return blob is not None and blob.path.parent == entry.path

    def _is_held(self, entry: Entry) -> bool:
        if self._is_blob(entry):
            return self._leases_on(entry.key) > 0
        return entry.key in self._booked

    def _is_own(self, entry: Entry, holds: Holds) -> bool:
        return self._is_blob(entry) and holds(entry.key)

    def _in_use(self, entries: list[Entry]) -> set[Path]:
        """Return those of *entries* whose file somebody reads without a lease; blocks."""
        blobs = {blob.path.parent: blob.path for blob in self._store}
        found = (entry.path for entry in entries if entry.path in blobs)
        return {path for path in found if readers.in_use(blobs[path])}

    def _sorted(
        self, survey: _Survey, key: str, open_files: set[Path], holds: Holds
    ) -> tuple[list[Entry], Holders]:
        """Tell what may be evicted for *key*, and who holds the rest."""
        blobs = [Entry(blob.path.parent, blob.size_bytes, blob.used_at) for blob in self._store]
        partials = [entry for name, entry in survey.partials.items() if name != key]
        entries = [*blobs, *partials, *(_outlived(entry, key) for entry in survey.quarantined)]
        held = {entry for entry in entries if self._is_held(entry) or entry.path in open_files}
        others = {name: size for name, size in self._booked.items() if name != key}
        unwritten = sum(max(0, size - _size(survey, name)) for name, size in others.items())
        holders = Holders(
            size_bytes=unwritten + sum(entry.size_bytes for entry in held),
            leases=sum(self._leases_on(entry.key) for entry in held if self._is_blob(entry)),
            open_files=len(open_files),
            fetches=len(others),
            own_bytes=sum(entry.size_bytes for entry in held if self._is_own(entry, holds)),
        )
        return [entry for entry in entries if entry not in held], holders

    def _room(self, survey: _Survey, key: str) -> Room:
        """Return the room for *key*, as if nothing of it were there yet."""
        others = {name: size for name, size in self._booked.items() if name != key}
        unwritten = sum(max(0, size - _size(survey, name)) for name, size in others.items())
        partials = sum(entry.size_bytes for entry in survey.partials.values())
        used = partials - _size(survey, key) + unwritten
        used += sum(entry.size_bytes for entry in survey.quarantined)
        used += sum(blob.size_bytes for blob in self._store)
        floor = self._floor(survey.total_bytes)
        free = survey.free_bytes + _size(survey, key) - unwritten
        return Room(free=free, floor=floor, quota=self._config.cache_bytes, used=used)

    def _floor(self, disk_bytes: int) -> int:
        share = int(disk_bytes * self._config.free_floor_percent / 100)
        return max(self._config.free_floor_bytes, share)

    def _look(self, booked: dict[str, int]) -> int:
        """Return what there is room for beside what is *booked*; blocks."""
        free, total = durable.disk_bytes(self._store.partials_dir)
        spare = free - self._floor(total)
        if self._config.cache_bytes is not None:
            high = int(self._config.cache_bytes * self._config.quota_high_percent / 100)
            left = [path for path in self._store.partial_paths() if path.name not in booked]
            others = [_entry(path).size_bytes for path in (*left, *self._store.quarantined())]
            used = sum(others) + sum(blob.size_bytes for blob in self._store)
            spare = min(spare, high - used)
        return spare - sum(booked.values())

    def _survey(self) -> _Survey:
        """Look at the disk; blocks."""
        free, total = durable.disk_bytes(self._store.partials_dir)
        partials = {path.name: _entry(path) for path in self._store.partial_paths()}
        quarantined = [_entry(path) for path in self._store.quarantined()]
        return _Survey(free, total, partials, quarantined)

    async def left(self) -> tuple[int, int]:
        """Return how much the disk has free, and how much of the cache could be evicted."""
        survey = await to_thread.run_sync(self._survey)
        candidates, _ = self._sorted(survey, "", set(), lambda _: False)
        return survey.free_bytes, sum(entry.size_bytes for entry in candidates)


def _outlived(entry: Entry, key: str) -> Entry:
    """Let what is quarantined go before all else, but last of all what can repair *key*."""
    return replace(entry, used_at=inf if entry.key == key else 0.0)


def _size(survey: _Survey, key: str) -> int:
    entry = survey.partials.get(key)
    return 0 if entry is None else entry.size_bytes


def _entry(path: Path) -> Entry:
    """Return what the directory takes on the disk; nothing if it is gone meanwhile."""
    try:
        size_bytes = sum(file.stat().st_blocks * 512 for file in path.iterdir())
        return Entry(path, size_bytes, path.stat().st_mtime)
    except OSError:
        return Entry(path, 0, 0.0)
