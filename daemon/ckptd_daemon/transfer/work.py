"""What is left to bring of one object, and what a connection is to bring next: decisions only."""

from __future__ import annotations

import time
from math import inf

import anyio

from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.endgame import EndGame
from ckptd_daemon.transfer.plan import Claim, Plan
from ckptd_daemon.transfer.ranges import Range

LATENCIES = 4  # a request is for so much that it takes so often what its reply is late


class Work:
    """The plan of one flight, as its callers want it and its end needs it; of the event loop."""

    def __init__(self, partial: Partial, demand: Demand) -> None:
        self._plan = Plan(partial.header, partial.missing())
        self._chunk_bytes = partial.header.chunk_bytes
        self._demand = demand
        self._end_game = EndGame(partial.header.size_bytes or 0)
        self._late: tuple[Claim, int | None] | None = None  # whom to help, and how
        self._late_s = inf  # the shortest that a reply was in coming: busy machines are later
        self._part_bytes = 0  # less than that is not worth a request
        self._turned = anyio.Event()

    @property
    def left_bytes(self) -> int:
        """How much has not come."""
        return self._plan.left_bytes

    @property
    def is_done(self) -> bool:
        """Whether everything is written."""
        return self._plan.is_done

    def wanted_bytes(self) -> int:
        """Return how much is to be brought, as far as is known."""
        if self._demand.is_whole:
            return self._plan.left_bytes
        return len(self._demand.urgent()) * self._chunk_bytes

    def is_there(self) -> bool:
        """Tell whether one more connection would have something to do."""
        return self._late is not None or self._unclaimed() is not None

    def next(self, streams: int) -> Claim | None:
        """Claim what is wanted and not being brought, as one of so many *streams*."""
        found = self._unclaimed(streams)
        return None if found is None else self._plan.claim(*found)

    def helped(self) -> Claim | None:
        """Claim a part of what would end last, or race it."""
        if self._late is None:
            return None
        (claim, keep_bytes), self._late = self._late, None
        if keep_bytes is None:
            return self._plan.race(claim)
        return self._plan.split(claim, keep_bytes)

    def end(self, claim: Claim) -> None:
        """Be done with *claim*; nobody is to help with it any more."""
        self._plan.end(claim)
        if self._late is not None and self._late[0] is claim:
            self._late = None

    def redo(self, index: int) -> None:
        """Have chunk *index* missing again: it was found to be damaged."""
        self._plan.redo(index)

    def look(self, *, may_help: bool) -> None:
        """Look how the claims come on, and for one that needs help."""
        claims = self._plan.claims
        self._end_game.look(time.monotonic(), claims)
        if not may_help or self._unclaimed() is not None:
            return
        if (help_ := self._end_game.help(claims)) is not None:
            self._late = claims[help_.which], help_.keep_bytes
            self.turn()

    def learn(self, late_s: float, bytes_per_s: float) -> None:
        """Learn from a request how late its reply was, and what that brought from then on."""
        self._late_s = min(self._late_s, late_s)
        self._part_bytes = int(LATENCIES * self._late_s * bytes_per_s)
        self._end_game.learn(bytes_per_s)

    async def turned(self) -> None:
        """Wait until there may be something else to do."""
        await self._turned.wait()

    def turn(self) -> None:
        """Have whoever waits for work look again."""
        self._turned.set()
        self._turned = anyio.Event()

    def _unclaimed(self, streams: int = 1) -> Range | None:
        demand = self._demand
        return self._plan.next(
            demand.urgent(),
            is_whole=demand.is_whole,
            streams=streams,
            part_bytes=self._part_bytes,
        )
