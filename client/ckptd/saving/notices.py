"""Whether a node of the job is about to go away: each rank asks its daemon, and all agree."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from ckptd import node
from ckptd.link.connection import Connection
from ckptd.saving.exchange import Exchange, settle
from ckptd.values import Preempted

FRESH_S: Final = 1.0
"""For how long an answer of the daemon is believed."""


class Notices:
    """What one rank knows, and what all of them make of it."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange
        self._asked_at = -math.inf
        self._cause = ""
        self._ends_at: float | None = None

    def agreed(self) -> Preempted | None:
        """Return the notice that leaves the least time, the same on every rank."""
        heard = settle(self._exchange, self._own)
        given = [each for each in heard if each["left_s"] is not None]
        first = min(given, key=lambda each: float(each["left_s"]), default=None)
        return None if first is None else Preempted(first["cause"], first["left_s"])

    def _own(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._asked_at >= FRESH_S:
            found = node.notice(self._connection)
            self._asked_at = now
            self._cause = "" if found is None else found.cause
            self._ends_at = None if found is None else now + found.left_s
        left_s = None if self._ends_at is None else max(0.0, self._ends_at - now)
        return {"cause": self._cause, "left_s": left_s}
