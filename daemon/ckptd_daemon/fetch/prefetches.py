"""What is fetched ahead of need: nobody waits for it, so it is noted, and its failures are kept."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

import anyio
from anyio import CancelScope, to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.fetch.call import Call, Request
from ckptd_daemon.fetch.selection import Selection
from ckptd_daemon.sessions import Process
from ckptd_daemon.store.wishes import Wish, Wishes
from ckptd_proto import errors, refs
from ckptd_proto.urls import display, identity, redacted

logger = logging.getLogger(__name__)

PREFETCHES_MAX = 32  # at a time; nobody waits for them
WISHES_MAX = 16_384  # each is a file, and a task
MISSES_MAX = 64
MISS_S = 86_400.0

Target = tuple[int, str, tuple[str, ...], tuple[str, ...]]
"""What somebody wants, by whose right: user, object, and which files of a directory."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A prefetch that failed, and of which nobody has heard."""

    id: str
    title: str
    error: str
    """The class."""
    sentence: str
    at: float
    """Seconds since the epoch."""


class Misses:
    """The failures of prefetches, each until what it wanted is here, or for a day."""

    def __init__(self) -> None:
        self._misses: dict[Target, Miss] = {}  # oldest first

    def note(self, target: Target, title: str, error: Exception) -> None:
        """Keep *error*, which has its name in the log, too."""
        sentence = redacted(str(error))
        if isinstance(error, errors.CkptdError) and error.id:
            id = error.id
        else:
            id = secrets.token_hex(4)
            sentence += f" [error {id}]"
        logger.warning("prefetching %s failed: %s", title, sentence)
        self._misses.pop(target, None)
        self._misses[target] = Miss(id, title, type(error).__name__, sentence, time.time())
        if len(self._misses) > MISSES_MAX:
            del self._misses[next(iter(self._misses))]

    def arrived(self, url: str, request: Request, uid: int) -> None:
        """Be done with the failures to bring what is here now."""
        if self._misses:  # else it is not worth a hash
            self._misses.pop(_target(url, request.include, request.exclude, uid), None)

    def recent(self) -> tuple[Miss, ...]:
        """Return them, the oldest first."""
        now = time.time()
        for target, miss in list(self._misses.items()):
            if now - miss.at >= MISS_S:
                del self._misses[target]
        return tuple(self._misses.values())


class Prefetches:
    """Takes wishes on, a few at a time; the rest wait, and survive the daemon."""

    def __init__(
        self,
        tasks: TaskGroup,
        notes: Wishes,
        calling: Callable[[Request, Process], AbstractContextManager[Call]],
    ) -> None:
        self._tasks = tasks
        self._notes = notes
        self._calling = calling
        self._turns = anyio.Semaphore(PREFETCHES_MAX)
        self._going: dict[str, tuple[Wish, CancelScope]] = {}
        self._noting = anyio.Lock()  # notes change in the order of the table
        self._quiet = anyio.Event()  # set by the last to end
        self._is_stopping = False
        self.misses = Misses()

    def __len__(self) -> int:
        return len(self._going)

    def __repr__(self) -> str:
        return f"<Prefetches [{len(self)} going or waiting]>"

    async def resume(self, uids: Collection[int]) -> None:
        """Go on with what earlier lives were asked for by *uids*, who may still ask."""
        for id, wish in (await to_thread.run_sync(self._notes.load)).items():
            if wish.uid in uids and wish.url:
                self._start(wish)
                continue
            text = f"user {wish.uid}, who asked for it, is not served any more (`allow_uids`)"
            if not wish.url:
                text = (
                    "the daemon was restarted, and a URL with a password or query is not written "
                    "down: prefetch it again"
                )
            target = wish.uid, id, wish.include, wish.exclude
            self.misses.note(target, wish.title, errors.Unavailable(text))
            await to_thread.run_sync(self._notes.remove, id)

    async def take_on(self, request: Request, uid: int) -> None:
        """Fetch for nobody in particular, with the rights of *uid*; noted when this returns.

        `keep_s` counts from when it is here. What is asked for again is one wish. Offline, what is
        here is kept, and all else refused as a fetch would be: there is nothing to wait for. Raises
        `InvalidArgument`, or what the disk has to say.
        """
        ref = refs.parse(request.ref, request.sha256)
        if ref.url is None:
            text = f"{request.ref} is a path of this node already; prefetch URLs"
            raise errors.InvalidArgument(text)
        Selection.of(request.include, request.exclude)
        wish = Wish(
            ref.url,
            display(ref.url),
            uid,
            ref.sha256,
            request.keep_s,
            request.offline,
            request.include,
            request.exclude,
            time.time(),
        )
        if wish.offline:
            await self._brought(wish)
            return
        async with self._noting:
            if wish.id in self._going:
                return
            if len(self) >= WISHES_MAX:
                text = f"{WISHES_MAX} prefetches are waiting already; ask again when some are done"
                raise errors.ResourceExhausted(text)
            await to_thread.run_sync(self._notes.write, wish)
            self._start(wish)

    def withdraw(self, ref: str, uid: int) -> int:
        """End the prefetches of *ref* that *uid* asked for; returns how many there were."""
        url = refs.parse(ref).url
        mine = [
            scope
            for wish, scope in self._going.values()
            if url is not None and wish.uid == uid and identity(wish.url) == identity(url)
        ]
        for scope in mine:
            scope.cancel()
        return len(mine)

    def stop(self) -> None:
        """What cannot be begun, or fails, from now on is left to the next life of the daemon."""
        self._is_stopping = True

    async def wait_idle(self) -> None:
        """Return when none is going on, or waiting for its turn."""
        while self._going:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    def _start(self, wish: Wish) -> None:
        scope = CancelScope()
        self._going[wish.id] = wish, scope
        self._tasks.start_soon(self._bring, wish, scope)

    async def _bring(self, wish: Wish, scope: CancelScope) -> None:
        is_settled = True  # also if it is withdrawn
        with scope:
            async with self._turns:
                is_settled = await self._is_settled(wish)
        async with self._noting:
            del self._going[wish.id]
            if is_settled:
                await to_thread.run_sync(self._notes.remove, wish.id)
        if not self._going:
            self._quiet.set()

    async def _is_settled(self, wish: Wish) -> bool:
        """Bring what *wish* is for, or keep the failure; False if the next life is to try."""
        try:
            await self._brought(wish)
        except Exception as error:  # noqa: BLE001  kept for whoever asks for the status
            if self._is_stopping and isinstance(error, errors.Unavailable):
                return False
            target = _target(wish.url, wish.include, wish.exclude, wish.uid)
            self.misses.note(target, wish.title, error)
        return True

    async def _brought(self, wish: Wish) -> None:
        """Bring what *wish* is for; raises one of our typed errors."""
        request = Request(
            wish.url,
            wish.sha256,
            wish.keep_s,
            wish.offline,
            include=wish.include,
            exclude=wish.exclude,
            is_detached=True,
        )
        with self._calling(request, Process(0, 0, wish.uid)) as call:
            await call.wait_ended()
            call.result()


def _target(url: str, include: tuple[str, ...], exclude: tuple[str, ...], uid: int) -> Target:
    return uid, identity(url), include, exclude
