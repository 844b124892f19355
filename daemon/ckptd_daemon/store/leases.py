"""Who holds which blob, until when: while its process lives, and `keep_s` longer.

A lease is one small file, so that it survives a restart of the daemon. It belongs to a process,
and to a blob or to a hold that the process has named. Its count is of the calls that took it:
one that fails gives back what it took, and no other's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.sessions import Process, Sessions
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

FORMAT = 1
TOGETHER_MAX = 64  # leases that are written in one go
UNSEEN_GRACE_S = 600.0
"""After a restart, a holder in a pid namespace that we cannot see has so long to come back."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim of one process on one blob."""

    id: str
    key: str
    holder: Process
    keep_s: float
    count: int = 1
    until: float | None = None
    """Seconds since the epoch; None while the holder lives."""


def lease_id(key: str, holder: Process, hold: str = "") -> str:
    """Return the name of the lease of *holder* on *key*, or of its *hold* on whatever it is."""
    text = f"{hold or key} {holder.uid} {holder.pid} {holder.started}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Leases:
    """The leases alive now."""

    def __init__(self, directory: Path, sessions: Sessions, tasks: TaskGroup) -> None:
        self._directory = directory
        self._sessions = sessions
        self._tasks = tasks  # owns the timers of leases whose holder has ended
        self._leases: dict[str, Lease] = {}
        self._per_key: Counter[str] = Counter()
        self._freed: Callable[[], object] = bool
        self._unwatch: dict[str, Callable[[], None]] = {}  # by lease
        self._writing = anyio.Lock()  # files change in the order of the table
        self._written: dict[str, Lease] = {}  # what their files say
        self._unwritten: dict[str, None] = {}  # leases whose files may say less, oldest first

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, sessions: Sessions) -> AsyncIterator[Self]:
        """Take up the leases of an earlier life and watch their holders."""
        async with anyio.create_task_group() as tasks:
            leases = cls(directory, sessions, tasks)
            for lease in await anyio.to_thread.run_sync(_load, directory):
                leases._resume(lease)
            try:
                yield leases
            finally:
                leases._leases.clear()  # holders that end from here on are found at the next start
                tasks.cancel_scope.cancel()

    def __len__(self) -> int:
        return len(self._leases)

    def __repr__(self) -> str:
        return f"<Leases [{len(self)} on {len(self._per_key)} blobs]>"

    def __contains__(self, key: object) -> bool:
        """Whether anybody holds the blob called *key*."""
        return key in self._per_key

    def on(self, key: str) -> int:
        """Return how many leases there are on *key*."""
        return self._per_key[key]

    def lasts(self, key: str, holder: Process) -> bool:
        """Whether *holder* has a lease on *key* that ends with it, and not before."""
        lease = self._leases.get(lease_id(key, holder))
        return lease is not None and lease.until is None

    def kept(self, key: str) -> list[Lease]:
        """Return the leases on *key* of processes that have ended, and asked to keep it longer."""
        found = (lease for lease in self._leases.values() if lease.key == key)
        return [lease for lease in found if lease.until is not None]

    def on_freed(self, tell: Callable[[], object]) -> None:
        """Have *tell* called whenever a lease has ended."""
        self._freed = tell

    def take(self, key: str, holder: Process, keep_s: float, hold: str = "") -> Lease:
        """Book a lease in memory, from this instant; `write` makes it survive a restart."""
        name = lease_id(key, holder, hold)
        held = self._leases.get(name)
        if held is not None and held.key != key:  # asked again, and the object has changed
            self._drop(held)
            held = None
        if held is None:
            lease = Lease(name, key, holder, keep_s)
            self._add(lease)
        else:
            keep_s = max(held.keep_s, keep_s)
            lease = replace(held, keep_s=keep_s, count=held.count + 1, until=None)
            self._leases[name] = lease
        if held is None or held.until is not None:
            self._watch(lease)
        return lease

    async def write(self, name: str) -> None:
        """Bring the file of the lease called *name* up to what the table says.

        Those who wait meanwhile are written together: a flight ends for all its passengers at once.
        """
        self._unwritten[name] = None
        async with self._writing:
            if name not in self._unwritten:
                return  # whoever wrote before us wrote it, too
            del self._unwritten[name]
            names = [name, *islice(self._unwritten, TOGETHER_MAX - 1)]
            for other in names[1:]:
                del self._unwritten[other]
            changes = {each: self._leases.get(each) for each in names if not self._is_written(each)}
            if not changes:
                return
            for each in changes:
                self._written.pop(each, None)
            try:
                failed = await anyio.to_thread.run_sync(_write, self._directory, changes)
            except BaseException:  # cancelled: nobody knows how far it came
                self._unwritten |= dict.fromkeys(names)
                raise
            for each, lease in changes.items():
                if lease is not None and each not in failed:
                    self._written[each] = lease
            failure = failed.pop(name, None)
            self._unwritten |= dict.fromkeys(failed)  # they try by themselves
            if failure is not None:
                raise failure

    def _is_written(self, name: str) -> bool:
        lease = self._leases.get(name)
        return lease is not None and _says_as_much(self._written.get(name), lease)

    async def release(self, name: str, uid: int, *, wholly: bool) -> None:
        """Give a lease of *uid*, or one count of it, back; one that has ended is no error."""
        lease = self._leases.get(name)
        if lease is None or lease.holder.uid != uid:
            return
        if lease.count > 1 and not wholly:
            self._leases[name] = replace(lease, count=lease.count - 1)
        else:
            self._drop(lease)
        await self.write(name)

    def _add(self, lease: Lease) -> None:
        self._leases[lease.id] = lease
        self._per_key[lease.key] += 1

    def _drop(self, lease: Lease) -> None:
        del self._leases[lease.id]
        self._per_key[lease.key] -= 1
        self._per_key += Counter()  # forgets keys that nobody holds
        if unwatch := self._unwatch.pop(lease.id, None):
            unwatch()
        self._freed()

    def _watch(self, lease: Lease) -> None:
        session = self._sessions.attend(lease.holder)
        unwatch = session.on_end(partial(self._holder_ended, lease.id))
        if lease.id in self._leases:  # else the holder has ended already
            self._unwatch[lease.id] = unwatch

    def _resume(self, lease: Lease) -> None:
        self._add(lease)
        if lease.holder.pid == 0 and lease.until is None:
            lease = replace(lease, keep_s=max(lease.keep_s, UNSEEN_GRACE_S))
            self._leases[lease.id] = lease
            self._holder_ended(lease.id)
        elif lease.until is not None:
            self._tasks.start_soon(self._expire, lease)
        else:
            self._watch(lease)

    def _holder_ended(self, name: str) -> None:
        lease = self._leases.get(name)
        if lease is None:
            return
        lease = self._leases[name] = replace(lease, until=time.time() + lease.keep_s)
        if lease.keep_s == 0:
            self._drop(lease)
        self._tasks.start_soon(self._expire, lease)

    async def _expire(self, lease: Lease) -> None:
        await self._write_or_log(lease.id)
        if lease.id not in self._leases:
            return
        await anyio.sleep(max(0.0, (lease.until or 0.0) - time.time()))
        if self._leases.get(lease.id) == lease:  # not released, nor taken anew
            self._drop(lease)
            await self._write_or_log(lease.id)

    async def _write_or_log(self, name: str) -> None:
        """Write where nobody waits who could be told: the table is right, whatever the disk does.

        A file that says too much is of a holder that has ended, as the next life finds out.
        """
        try:
            await self.write(name)
        except (errors.CkptdError, OSError) as error:
            logger.error("the file of lease %s is not up to date: %s", name, error)


def _write(directory: Path, changes: Mapping[str, Lease | None]) -> dict[str, Exception]:
    """Write, or remove, the file of each lease; return what went wrong, by lease."""
    failed: dict[str, Exception] = {}
    for name, lease in changes.items():
        path = directory / f"{name}.json"
        try:
            if lease is None:
                path.unlink(missing_ok=True)
            else:
                data = json.dumps({"format": FORMAT, **asdict(lease)}).encode()
                survives = lease.keep_s > 0  # else a power cut ends its process, too
                durable.write_file(path, data, survives=survives)
        except (OSError, errors.CkptdError) as error:
            failed[name] = error
    return failed


def _says_as_much(written: Lease | None, lease: Lease) -> bool:
    """Whether a file that says *written* will do for *lease*.

    The count may differ: who is granted a lease more and gives it back is of one life of the
    daemon, and the next one needs to know only that the lease is there.
    """
    return written is not None and replace(written, count=lease.count) == lease


def _load(directory: Path) -> list[Lease]:
    durable.make_dirs(directory)
    leases = []
    for path in directory.glob("*.json"):
        try:
            fields = json.loads(path.read_bytes())
            if (found := fields.pop("format")) != FORMAT:
                text = "lease %s is left alone: it has format %s, and this version reads %s"
                logger.error(text, path, found, FORMAT)
                continue
            leases.append(Lease(**{**fields, "holder": Process(**fields["holder"])}))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("lease %s is unreadable and ends: %s", path.name, error)
            path.unlink()
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink()
    return leases
