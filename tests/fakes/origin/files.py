"""What an origin serves, and what it does wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime

from fakes.origin.faults import Fault

OLD = "Sun, 06 Nov 1994 08:49:37 GMT"
FIRST_BYTE = "bytes=0-0"
"""How the version is asked for."""


def just_now(later_s: float = 0.0) -> str:
    """The time, as headers write it: too young to name a version by."""
    at = datetime.fromtimestamp(datetime.now(UTC).timestamp() + later_s, UTC)
    return format_datetime(at, usegmt=True)


@dataclass
class File:
    data: bytes
    etag: str | None
    last_modified: str | None = OLD
    headers: dict[str, str] = field(default_factory=dict)
    """More headers of every reply that brings bytes."""
    next_version: File | None = None
    ignores_match: bool = False
    """If-Match means nothing to it, as to many CDNs."""
    faults: list[Fault] = field(default_factory=list)
    """Taken one by one by requests for more than the first byte, before what lasts."""
    question_faults: list[Fault] = field(default_factory=list)
    """Taken one by one by requests for the first byte, before what lasts."""
    lasting: Fault | None = None
    """Applies to every other request."""
    retry_after_s: int = 0
    """What 429 asks for."""
    bytes_per_s: float = 0
    """Over each connection; 0 for as fast as it goes."""
    first_byte_s: float = 0
    """Until it answers, as over a long way."""
    dribble_s: float = 0.02
    """Between two bytes."""

    def next_fault(self, asked: str | None) -> Fault | None:
        """Take the fault for a request with the Range header *asked*."""
        queue = self.question_faults if asked == FIRST_BYTE else self.faults
        return queue.pop(0) if queue else self.lasting
