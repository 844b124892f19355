"""Who is connected, and the moment they die.

A session is one client process, however many connections it has. The front door announces
each connection under a unique name, which gRPC then shows as `context.peer()`. A process is
watched by a pidfd; one in a pid namespace that we cannot see is a session per connection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup

from ckptd_proto import errors

logger = logging.getLogger(__name__)

# fields of /proc/PID/stat, counted from behind the command
_STATE: Final = 0
_THREADS: Final = 17
_STARTED: Final = 19
_DEAD: Final = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this node, told apart from a later one with the same pid."""

    pid: int
    """0 if it lives in a pid namespace that we cannot see."""
    started: int
    """Clock ticks between boot and its start; 0 if unknown."""
    uid: int

    @classmethod
    def of_pid(cls, pid: int, uid: int) -> Self:
        """Return the process that has *pid* now; one that is gone has `started` 0."""
        try:
            return cls(pid, int(_stat(pid)[_STARTED]), uid)
        except OSError:
            return cls(pid, 0, uid)

    @property
    def has_ended(self) -> bool:
        """It is gone, or dead and only not waited for by its parent; False if nobody can tell."""
        try:
            stat = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        except OSError:  # no descriptors are left, say
            return False
        if int(stat[_STARTED]) != self.started:
            return True  # the pid was given to another
        # where only the first thread has ended, the others may still write
        return stat[_STATE] in _DEAD and int(stat[_THREADS]) <= 1

    def pidfd(self) -> int | None:
        """Open a descriptor that becomes readable when the process ends; None if it is gone.

        Raises `OSError` when we have no descriptors left: that says nothing of the process.
        """
        if self.pid == 0:
            return None
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.of_pid(self.pid, self.uid) != self:  # the pid was reused meanwhile
            os.close(pidfd)
            return None
        return pidfd


class Session:
    """One client process that is, or was, connected."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ended = anyio.Event()
        self.connections = 0
        self._callbacks: dict[object, Callable[[], None]] = {}

    def __repr__(self) -> str:
        state = "ended" if self.ended.is_set() else f"{self.connections} connections"
        return f"<Session pid {self.process.pid} uid {self.process.uid} [{state}]>"

    def on_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback*, on the event loop, when the process ends; at once if it has.

        Return what takes it off again, for those who outlive their interest in the process.
        """
        key = object()
        if self.ended.is_set():
            callback()
        else:
            self._callbacks[key] = callback

        def remove() -> None:
            self._callbacks.pop(key, None)

        return remove

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            callback()


class Sessions:
    """The client processes alive now, and the connections they came by."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks  # owns one watcher per process
        self._by_process: dict[Process, Session] = {}
        self._by_connection: dict[str, Session] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Watch processes until the block ends; sessions are then simply forgotten."""
        async with anyio.create_task_group() as tasks:
            yield cls(tasks)
            tasks.cancel_scope.cancel()

    def __len__(self) -> int:
        return len(self._by_process)

    def __repr__(self) -> str:
        return f"<Sessions [{len(self)} processes, {len(self._by_connection)} connections]>"

    def attend(self, process: Process) -> Session:
        """Return the session of *process*, watching it from now on.

        A process that is gone already gives a session that has ended.
        """
        if session := self._by_process.get(process):
            return session
        session = Session(process)
        pidfd = process.pidfd()
        if pidfd is None:
            session._end()
            return session
        self._by_process[process] = session
        self._tasks.start_soon(self._watch, session, pidfd)
        return session

    def connect(self, connection: str, process: Process) -> Session:
        """Note that *process* came in by the connection named *connection*."""
        if process.pid:
            session = self.attend(process)
        else:  # one that we cannot watch is a session per connection
            session = self._by_process[process] = Session(process)
        session.connections += 1
        self._by_connection[connection] = session
        return session

    def disconnect(self, connection: str) -> None:
        """Note that the connection is closed; ends a session that nothing else watches."""
        session = self._by_connection.pop(connection)
        session.connections -= 1
        if session.process.pid == 0:
            if self._by_process.get(session.process) is session:
                del self._by_process[session.process]
            session._end()

    def of(self, connection: str) -> Session:
        """Return the session that came in by *connection*; raises `PermissionDenied`."""
        try:
            return self._by_connection[connection]
        except KeyError:
            text = "the call did not come through the front door; connect to the public socket"
            raise errors.PermissionDenied(text) from None

    async def _watch(self, session: Session, pidfd: int) -> None:
        try:
            await anyio.wait_readable(pidfd)
            del self._by_process[session.process]
            logger.debug("process %s ended", session.process.pid)
            session._end()
        finally:
            os.close(pidfd)


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process; raises `OSError` if there is none, or it cannot."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return stat.rpartition(")")[2].split()  # the command, in parentheses, may hold anything
