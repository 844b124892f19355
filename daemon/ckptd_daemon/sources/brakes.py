"""How long each host asks to be left alone; kept for the whole daemon, whoever was refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

LASTING_STATUS = frozenset({501, 505})  # a method or a protocol that it does not know
TRANSIENT_STATUS = frozenset({408, 421, 425, 429, *range(500, 600)}) - LASTING_STATUS
THROTTLED_STATUS = frozenset({429, 503, 509, 529})  # the latter two of nobody's standard
PAUSE_MAX_S = 900.0  # no reply may stop us for longer; who wants more says so again
EPOCH_S = 10**9  # a number of seconds that is a date, in some origins' headers
HOSTS_MAX = 4096
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)  # more digits are no number that anybody means
_DECIMAL = re.compile(r"\d{1,18}(\.\d{1,18})?", re.ASCII)

Get = Callable[[str], str | None]
"""Returns a header of a reply by its name, in whatever case."""


class Brakes:
    """The pauses that hosts have asked for; of the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self.on_throttled: Callable[[str], object] = bool
        """Gets the URL of whatever was refused for having asked too much."""

    def __repr__(self) -> str:
        return f"<Brakes [{len(self._until)} hosts]>"

    def hold(self, url: str, pause_s: float | None) -> None:
        """Let nobody ask the host of *url* for so long."""
        if not pause_s:
            return
        until = self._clock() + min(pause_s, PAUSE_MAX_S)
        host = host_of(url)
        self._until[host] = max(until, self._until.get(host, 0.0))
        while len(self._until) > HOSTS_MAX:
            del self._until[min(self._until, key=self._until.__getitem__)]

    def heed(self, url: str, status: int, get: Get) -> None:
        """Do as a reply to *url* asks, by its *status* and headers."""
        self.hold(url, pause_s(status, get))
        if status in THROTTLED_STATUS:
            self.on_throttled(url)

    def left_s(self, *urls: str) -> float:
        """Return for how long not to ask the hosts of *urls*; 0 if they may be asked."""
        now = self._clock()
        return max(0.0, *(self._until.get(host_of(url), now) - now for url in urls))


def host_of(url: str) -> str:
    """Return what serves *url*: scheme, host and port, without anything secret."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def pause_s(status: int, get: Get) -> float | None:
    """Return how long a reply asks to wait before the next request; None if it does not.

    That may be one of `TRANSIENT_STATUS`, or any other that says nothing is left of a quota.
    """
    is_refused = status in TRANSIENT_STATUS
    asked = retry_after_s(get("Retry-After")) if is_refused else None
    if asked is not None:
        return asked
    waits = [reset for remaining, reset in _quotas(get) if remaining == 0 or status == 429]
    return max(waits, default=None)


def _quotas(get: Get) -> list[tuple[int, float]]:
    """Return what a reply says of quotas: requests left, and seconds until there are more."""
    found = [
        (int(remaining[1]), float(reset[1]))
        for item in re.split(r',\s*(?=")', get("RateLimit") or "")
        if (remaining := re.search(r"\b(?:r|remaining)=(\d{1,18})\b", item, re.ASCII))
        and (reset := re.search(r"\b(?:t|reset)=(\d{1,18})\b", item, re.ASCII))
    ]
    for prefix in ("RateLimit", "X-RateLimit"):
        left, reset_at = get(f"{prefix}-Remaining") or "", get(f"{prefix}-Reset") or ""
        if _NUMBER.fullmatch(left.strip()) and _DECIMAL.fullmatch(reset_at.strip()):
            reset_s = float(reset_at)
            now_s = datetime.now(UTC).timestamp() if reset_s > EPOCH_S else 0.0
            found.append((int(left), max(0.0, reset_s - now_s)))
    return found


def retry_after_s(value: str | None) -> float | None:
    """Return how long a Retry-After header asks to wait, given in seconds or as a date."""
    if value is None:
        return None
    if _NUMBER.fullmatch(value.strip()):
        return float(value)
    try:
        wait = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):  # not a date, or one without a zone
        return None
    return max(0.0, wait)
