"""What the mix plays with: files with versions and moods, at origins that come and go."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass, field

from fakes.origin import OLD, Fault, File, Origin, just_now

CHUNK_BYTES = 16 << 20
SIZES = (
    0,
    1,
    4096,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    2 * CHUNK_BYTES,
    (40 << 20) + 5,
    (66 << 20) + 4097,
)
MOODS = {
    Fault.NONE: 400,
    Fault.NO_RANGES: 6,
    Fault.NO_LENGTH: 6,
    Fault.NO_LABEL: 3,
    Fault.OTHER_RANGE: 6,
    Fault.OTHER_TOTAL: 3,
    Fault.LABELLED_200: 6,
    Fault.MULTIPART: 3,
    Fault.LONGER: 6,
    Fault.SHORTER: 6,
    Fault.SURPLUS: 6,
    Fault.UNSATISFIABLE: 3,
    Fault.GZIP: 3,
    Fault.TRUNCATE: 20,
    Fault.RESET: 20,
    Fault.STALL: 8,
    Fault.DRIBBLE: 4,
    Fault.MUTE: 4,
    Fault.HANG_UP: 8,
    Fault.ONE_SHOT: 8,
    Fault.UNFRAMED: 2,
    Fault.GARBAGE: 4,
    Fault.LONG_HEADERS: 4,
    Fault.THROTTLE: 8,
    Fault.THROTTLE_UNTIL: 4,
    Fault.UNAVAILABLE: 12,
    Fault.UNAUTHORIZED: 2,
    Fault.FORBID: 2,
    Fault.LOSE: 2,
    Fault.LOOP: 2,
}
MOODS_AT_ONCE = 4000
STALE_S = 20.0  # a caller may share a question that was asked before it came


@dataclass
class Version:
    sha256: str
    began: float
    ended: float = float("inf")


@dataclass
class Thing:
    """A file of an origin, and every version that it ever had."""

    name: str
    size_bytes: int
    origin: Origin
    etag: str | None
    dates: bool
    """It has a Last-Modified that is old enough to tell versions apart."""
    is_stated: bool
    """Callers state its SHA-256: then it has one version, and may be damaged on its way."""
    ignores_match: bool
    random: random.Random
    versions: list[Version] = field(default_factory=list)
    file: File | None = None

    def had(self, sha256: str, began: float, ended: float) -> bool:
        """Tell whether it had these bytes while a call went on."""
        return any(
            version.sha256 == sha256 and version.ended > began - STALE_S and version.began < ended
            for version in self.versions
        )


class World:
    """Everything that the seed decides about the origins."""

    def __init__(self, seed: str, origins: list[Origin]) -> None:
        self._random = random.Random(f"{seed}/world")
        self._noise = self._random.randbytes(max(SIZES) + 4096 * 1024)
        self.origins = origins
        self.things = [self._thing(seed, number, size) for number, size in enumerate(SIZES * 2)]
        for thing in self.things:
            self.change(thing)

    def __getitem__(self, name: str) -> Thing:
        return next(thing for thing in self.things if thing.name == name)

    def _thing(self, seed: str, number: int, size: int) -> Thing:
        drawn = random.Random(f"{seed}/thing/{number}")
        etag, dates = drawn.choices(
            [('"v{}"', True), (None, True), ('W/"v{}"', True), ('W/"v{}"', False), (None, False)],
            [8, 3, 1, 2, 2],
        )[0]
        return Thing(
            name=f"thing-{number}",
            size_bytes=size,
            origin=drawn.choice(self.origins),
            etag=etag,
            dates=dates,
            is_stated=drawn.random() < 0.3,
            ignores_match=drawn.random() < 0.3,
            random=drawn,
        )

    def change(self, thing: Thing) -> None:
        """Give *thing* another version, of another length now and then."""
        count = len(thing.versions)
        size = thing.size_bytes
        if count and size and thing.random.random() < 0.3:
            size = thing.random.choice([max(1, size - 1), size + 1, size // 2 + 1])
        start = 4096 * count
        data = self._noise[start : start + size]
        now = time.monotonic()
        if thing.versions:
            thing.versions[-1].ended = now
        thing.versions.append(Version(hashlib.sha256(data).hexdigest(), now))
        before = thing.file
        thing.file = thing.origin.put(
            thing.name,
            data,
            etag=None if thing.etag is None else thing.etag.format(count),
            last_modified=_date(count) if thing.dates else thing.random.choice([None, just_now()]),
            ignores_match=thing.ignores_match,
            retry_after_s=1,
            faults=[] if before is None else before.faults,
            question_faults=[] if before is None else before.question_faults,
        )

    def sow(self, thing: Thing, evil: float) -> None:
        """Decide how its next requests go; *evil* is how much of the weight faults have."""
        assert thing.file is not None
        moods = MOODS | ({Fault.CORRUPT: 20} if thing.is_stated else {})
        moods[Fault.NONE] = int(sum(moods.values()) * (1 - evil) / max(evil, 0.01))
        thing.file.faults = thing.random.choices([*moods], moods.values(), k=MOODS_AT_ONCE)
        moods[Fault.NONE] *= 3
        thing.file.question_faults = thing.random.choices([*moods], moods.values(), k=MOODS_AT_ONCE)

    def heal(self) -> None:
        """Have every origin answer as it should from now on."""
        for thing in self.things:
            assert thing.file is not None
            thing.file.faults, thing.file.question_faults = [], []


def _date(count: int) -> str:
    """A time long ago, another one for each version."""
    return OLD.replace("08:49:37", f"{count // 3600 % 24:02}:{count // 60 % 60:02}:{count % 60:02}")
