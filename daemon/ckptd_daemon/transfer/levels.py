"""What was learned of hosts, kept across restarts: as how many streams at a time each is safe with.

A hint, not a promise: what is lost, damaged or old is learned again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread

from ckptd_daemon.store import durable
from ckptd_daemon.transfer.hosts import Hosts
from ckptd_proto import errors

logger = logging.getLogger(__name__)

FORMAT = 1
KEEP_S = 10.0  # what a crash may cost of it
LEARNED_S = 7 * 86400.0  # for so long it is believed
HOSTS_MAX = 256
FILE_MAX_BYTES = 1 << 20


class Levels:
    """The levels of hosts in one file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._learned: dict[str, tuple[int, float]] = {}  # level, and when; the oldest first
        self._is_ours = False  # once it was read, and is not of a later version

    def load(self) -> dict[str, int]:
        """Return what an earlier life learned lately; blocks on the disk."""
        self._is_ours = True
        try:
            with self._path.open("rb") as file:
                noted = json.loads(file.read(FILE_MAX_BYTES))
            if (found := noted["format"]) != FORMAT:
                text = "%s is left alone: it has format %s, and this version reads %s"
                logger.error(text, self._path, found, FORMAT)
                self._is_ours = False
                return {}
            entries = [(str(h), int(level), float(at)) for h, level, at in noted["hosts"]]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not readable, and learned anew: %s", self._path, error)
            return {}
        now = self._clock()
        for host, level, at in entries[-HOSTS_MAX:]:
            if level >= 1 and now - LEARNED_S < at <= now:
                self._learned[host] = level, at
        return {host: level for host, (level, _) in self._learned.items()}

    async def keep(self, hosts: Hosts) -> None:
        """Write down, now and then and at the end, what *hosts* learned; runs for ever."""
        try:
            while True:
                await anyio.sleep(KEEP_S)
                await self._note(hosts)
        finally:
            with anyio.CancelScope(shield=True):
                await self._note(hosts)

    async def _note(self, hosts: Hosts) -> None:
        if not (self._is_ours and self._learn(hosts.learned(), hosts.start)):
            return
        entries = [(host, level, at) for host, (level, at) in self._learned.items()]
        text = json.dumps({"format": FORMAT, "hosts": entries}).encode()
        try:
            await to_thread.run_sync(durable.write_file, self._path, text)
        except (errors.CkptdError, OSError) as error:
            logger.warning("what was learned of hosts is not kept: %s", error)

    def _learn(self, levels: dict[str, int], usual: int) -> bool:
        """Take *levels* over; tells whether that changed anything."""
        now, unknown = self._clock(), (usual, 0.0)
        changed = [h for h, level in levels.items() if self._learned.get(h, unknown)[0] != level]
        for host in changed:
            self._learned.pop(host, None)
            self._learned[host] = levels[host], now
        while len(self._learned) > HOSTS_MAX:
            del self._learned[next(iter(self._learned))]
        return bool(changed)
