"""Which chunks of an object in flight are wanted, which of them first, and which are here.

Of the event loop: callers say what they want, the flight's work reads it and tells what landed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView
from contextlib import contextmanager

import anyio

from ckptd_daemon.store.partials import Partial


class Demand:
    """What the callers of one flight want of its object."""

    def __init__(self) -> None:
        self._wanted: dict[
            int, set[object]
        ] = {}  # chunks, and who waits for each; first come first
        self._whole = 0  # callers that want the whole object
        self._awaited: list[Callable[[], bool]] = []  # of callers: whether anybody waits for them
        self._stated: list[str | None] = []  # by callers: the SHA-256 that it is to have
        self._holds: list[Callable[[str], bool]] = []  # of callers: whether they hold a blob
        self._partial: Partial | None = None
        self._moved = anyio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether somebody wants all of the object."""
        return self._whole > 0

    @property
    def partial(self) -> Partial | None:
        """Where the chunks that landed can be read; None before it is open."""
        return self._partial

    def is_awaited(self) -> bool:
        """Tell whether somebody waits; else it is brought ahead of need."""
        return any(is_awaited() for is_awaited in self._awaited)

    @property
    def detached(self) -> int:
        """How many callers nobody waits for."""
        return sum(not is_awaited() for is_awaited in self._awaited)

    @contextmanager
    def awaited(
        self,
        is_awaited: Callable[[], bool],
        sha256: str | None = None,
        holds: Callable[[str], bool] = lambda _key: False,
    ) -> Iterator[None]:
        """Be a caller inside the block; *is_awaited* tells whether anybody waits for it.

        It may state the *sha256* that the object is to have. *holds* tells, of the key of a blob,
        whether the caller keeps that for as long as it waits.
        """
        self._awaited.append(is_awaited)
        self._stated.append(sha256)
        self._holds.append(holds)
        try:
            yield
        finally:
            self._awaited.remove(is_awaited)
            self._holds.remove(holds)
            self._stated.remove(sha256)

    def is_stated_by_all(self, sha256: str) -> bool:
        """Tell whether no caller has use for an object with another SHA-256."""
        return all(stated == sha256 for stated in self._stated)

    def holds(self, key: str) -> bool:
        """Tell whether a caller keeps the blob called *key* for as long as it waits."""
        return any(holds(key) for holds in self._holds)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Want all of the object inside the block."""
        self._whole += 1
        self._move()
        try:
            yield
        finally:
            self._whole -= 1
            self._move()

    def want(self, chunks: Iterable[int], caller: object) -> None:
        """Have these brought before all others, as long as *caller* cares."""
        landed = self._partial.landed if self._partial is not None else {}
        for index in chunks:
            if index not in landed:
                self._wanted.setdefault(index, set()).add(caller)
        self._move()

    def unwant(self, caller: object) -> None:
        """Have what nobody but *caller* waited for brought in its turn, if at all."""
        for index, callers in list(self._wanted.items()):
            callers.discard(caller)
            if not callers:
                del self._wanted[index]
        self._move()

    def urgent(self) -> KeysView[int]:
        """Return what is wanted and has not landed, the most urgent first; costs nothing."""
        return self._wanted.keys()

    def open(self, partial: Partial) -> None:
        """Tell that chunks are to be found in *partial* from now on."""
        self._partial = partial
        for index in self._wanted.keys() & partial.landed.keys():
            del self._wanted[index]
        self._move()

    def landed(self, chunk: int) -> None:
        """Tell that *chunk* is in the partial."""
        self._wanted.pop(chunk, None)
        self._move()

    async def moved(self) -> None:
        """Wait until more is wanted, or more is here."""
        await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()


class Wishes:
    """What one reply of the general path is to bring."""

    def __init__(self, demand: Demand, partial: Partial, *, is_whole: bool) -> None:
        self._demand = demand
        self._partial = partial
        self.is_whole = is_whole
        """The origin sends all or nothing."""

    async def first(self) -> int:
        """Return the chunk to begin with, once one is wanted."""
        while not (self.is_whole or self._demand.is_whole or self._demand.urgent()):
            await self._demand.moved()
        if self.is_whole:
            return 0
        return next(iter(self._demand.urgent() or self._partial.missing()))

    def goes_on(self, chunk: int) -> bool:
        """Tell whether *chunk* is still to come."""
        return chunk not in self._partial.landed and (
            self.is_whole or self._demand.is_whole or chunk in self._demand.urgent()
        )

    def landed(self, chunk: int) -> None:
        """Tell that *chunk* is here."""
        self._demand.landed(chunk)
