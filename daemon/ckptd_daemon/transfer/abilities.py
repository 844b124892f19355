"""What origins were found unable to do, so that not every flight has to find out."""

from __future__ import annotations

import time
from collections.abc import Callable

BELIEVED_S = 600.0
REMEMBERED_MAX = 4096
STRIKES = 3  # in a row, before an odd reply is taken for a habit


class Abilities:
    """The objects whose ranges the byte path cannot read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plain_until: dict[tuple[str, str], float] = {}  # by host and object

    def may_be_fast(self, host: str, object_id: str) -> bool:
        """Tell whether the byte path is worth a try."""
        return self._clock() >= self._plain_until.get((host, object_id), 0.0)

    def is_odd(self, host: str, object_id: str) -> None:
        """Leave the object of this host to the general path for a while."""
        self._plain_until[host, object_id] = self._clock() + BELIEVED_S
        while len(self._plain_until) > REMEMBERED_MAX:
            del self._plain_until[next(iter(self._plain_until))]
