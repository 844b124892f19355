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
    CHUNK_BYTES - 1,
    CHUNK_BYTES + 1,
    2 * CHUNK_BYTES,
    (34 << 20) + 5,
    (40 << 20) + 4097,
    (66 << 20) - 1,
)
MOODS = {
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
CHANGE_WITHIN = 5  # requests, so that it is in the middle of a transfer
MOODS_AT_ONCE = 4000
STALE_S = 20.0  # a caller may share a question that was asked before it came


@dataclass
class Version:
    sha256: str
    began: float
    """At the earliest."""
    ended: float = float("inf")
    """At the latest."""


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
    faults: list[Fault] = field(default_factory=list)
    question_faults: list[Fault] = field(default_factory=list)

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
            thing.origin.serve(thing.name, self._version(thing))

    def __getitem__(self, name: str) -> Thing:
        return next(thing for thing in self.things if thing.name == name)

    def _thing(self, seed: str, number: int, size: int) -> Thing:
        drawn = random.Random(f"{seed}/thing/{number}")
        etag, dates = drawn.choices(
            [('"v{}"', True), (None, True), ('W/"v{}"', True), ('W/"v{}"', False), (None, False)],
            [8, 4, 2, 1, 1],
        )[0]
        return Thing(
            name=f"thing-{number}",
            size_bytes=size,
            origin=drawn.choice(self.origins),
            etag=etag,
            dates=dates,
            is_stated=drawn.random() < 0.3,
            ignores_match=drawn.random() < 0.5,
            random=drawn,
        )

    def change(self, thing: Thing) -> bool:
        """Have *thing* become another version at one of its next requests.

        Its length, too, is another one now and then. False if the last change is still to come.
        """
        now = time.monotonic()
        current = thing.origin.file(thing.name)
        if current.next_version is not None:
            return False
        if len(thing.versions) > 1:
            thing.versions[-2].ended = now
        current.next_version = self._version(thing)
        thing.faults.insert(thing.random.randrange(CHANGE_WITHIN), Fault.CHANGE)
        return True

    def _version(self, thing: Thing) -> File:
        count = len(thing.versions)
        size = thing.size_bytes
        if count and size and thing.random.random() < 0.3:
            size = thing.random.choice([max(1, size - 1), size + 1, size // 2 + 1])
        data = self._noise[4096 * count : 4096 * count + size]
        thing.versions.append(Version(hashlib.sha256(data).hexdigest(), time.monotonic()))
        return File(
            data,
            etag=None if thing.etag is None else thing.etag.format(count),
            last_modified=_date(count) if thing.dates else thing.random.choice([None, just_now()]),
            ignores_match=thing.ignores_match,
            retry_after_s=1,
            faults=thing.faults,
            question_faults=thing.question_faults,
        )

    def sow(self, thing: Thing, evil: float) -> None:
        """Decide how its next requests go; *evil* is the share that goes wrong."""
        thing.faults[:] = self._moods(thing, evil)
        thing.question_faults[:] = self._moods(thing, evil / 2)
        if thing.origin.file(thing.name).next_version is not None:
            thing.faults.insert(thing.random.randrange(CHANGE_WITHIN), Fault.CHANGE)

    def _moods(self, thing: Thing, evil: float) -> list[Fault]:
        moods = MOODS | ({Fault.CORRUPT: 20} if thing.is_stated else {})
        wrong = thing.random.choices([*moods], moods.values(), k=MOODS_AT_ONCE)
        return [mood if thing.random.random() < evil else Fault.NONE for mood in wrong]

    def heal(self) -> None:
        """Have every origin answer as it should from now on."""
        for thing in self.things:
            thing.faults.clear()
            thing.question_faults.clear()


def _date(count: int) -> str:
    """A time long ago, another one for each version."""
    return OLD.replace("08:49:37", f"{count // 3600 % 24:02}:{count // 60 % 60:02}:{count % 60:02}")
