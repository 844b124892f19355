"""What is done with a run one at a time, by the daemon: whoever wants it waits, and may leave."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.save.places import Place
from ckptd_daemon.save.turns import Turns
from ckptd_proto import errors

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Errand(Generic[T]):
    """One piece of work, and what came of it."""

    work: Callable[[], Awaitable[T]]
    what: str
    began_at: float = field(default_factory=time.monotonic)
    done: anyio.Event = field(default_factory=anyio.Event)
    values: list[T] = field(default_factory=list)  # one element once the work returned
    error: Exception | None = None

    def outcome(self) -> T:
        """Return what the work returned, once it is done; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.values[0]


class Errands:
    """One piece of work at a time in each run: two ranks must not both be the first.

    A run whose filesystem hangs keeps only those waiting who want that run. The turn is given on
    when the work is done, not when its caller has left: there still is a thread at it.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks  # outlives every caller
        self._turns = Turns[Place]()
        self._going: dict[Place, Errand[Any]] = {}

    def __repr__(self) -> str:
        return f"<Errands [{', '.join(self.what(place) for place in self._going)}]>"

    def what(self, place: Place) -> str:
        """Return what is being done with the run, in words; empty if nothing is."""
        if (errand := self._going.get(place)) is None:
            return ""
        return f"{errand.what} for {time.monotonic() - errand.began_at:.0f} s"

    async def run(self, place: Place, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns once it has had its turn; *what* that is, in words."""
        errand = await self.begin(place, what, work)
        await errand.done.wait()
        return errand.outcome()

    @contextmanager
    def answering(self, place: Place, within_s: float | None) -> Iterator[None]:
        """Raise `DeadlineExceeded`, which says what is going on, if the block takes too long.

        What has begun by then goes on. None: it may take as long as it likes.
        """
        with anyio.move_on_after(within_s) as scope:
            yield
        if scope.cancelled_caught:
            doing = f": it is {self.what(place)}" if place in self._going else ""
            text = f"{place} has not answered within {within_s:.0f} s{doing}"
            raise errors.DeadlineExceeded(f"{text}; look at that filesystem")

    async def begin(self, place: Place, what: str, work: Callable[[], Awaitable[T]]) -> Errand[T]:
        """Begin *work* as soon as it is its turn, and do not wait for it."""
        turn = AsyncExitStack()
        await turn.enter_async_context(self._turns.take(place))
        errand = Errand(work, what)
        self._going[place] = errand
        self._tasks.start_soon(self._go, place, turn, errand)
        return errand

    async def _go(self, place: Place, turn: AsyncExitStack, errand: Errand[T]) -> None:
        try:
            async with turn:
                try:
                    errand.values.append(await errand.work())
                finally:
                    del self._going[place]
        except Exception as error:  # noqa: BLE001  raised by whoever waits
            errand.error = error
        finally:
            errand.done.set()
