"""What the mix plays with: files, tensors and directories with versions and moods, at origins."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ckptd_proto.crc import crc32c
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
MEMBER_SIZES = (0, 9, 5000, 70_001, CHUNK_BYTES + 3)
TENSORS = tuple(f"t{number}" for number in range(7))
TENSORS_BYTES = (37 << 20) + 11
KEEPSAKE_BYTES = 2 * CHUNK_BYTES + 77
MOODS = {
    Fault.NO_RANGES: 6,
    Fault.NO_LENGTH: 6,
    Fault.NO_LABEL: 3,
    Fault.NO_TOTAL: 3,
    Fault.OTHER_RANGE: 6,
    Fault.OTHER_TOTAL: 3,
    Fault.LABELLED_200: 6,
    Fault.MULTIPART: 3,
    Fault.LONGER: 6,
    Fault.SHORTER: 6,
    Fault.SURPLUS: 6,
    Fault.OVERLONG: 3,
    Fault.UNSATISFIABLE: 3,
    Fault.NO_TAIL: 3,
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
    Fault.OVERLOADED: 4,
    Fault.CUT_OFF: 4,
    Fault.UNAUTHORIZED: 2,
    Fault.FORBID: 2,
    Fault.LOSE: 2,
    Fault.LOOP: 2,
}
CHANGE_WITHIN = 5  # requests, so that it is in the middle of a transfer
MOODS_AT_ONCE = 4000
STALE_S = 20.0  # a caller may share a question that was asked before it came


@dataclass(frozen=True)
class Site:
    """An origin, and the address at which callers reach it: its own, or one in front of it."""

    origin: Origin
    base: str

    def url(self, name: str) -> str:
        return f"{self.base}{name}"


@dataclass
class Version:
    sha256: str
    tensors: Mapping[str, str]
    """The SHA-256 of each tensor, in a file that has some."""
    began: float
    """At the earliest."""
    ended: float = float("inf")
    """At the latest."""

    def has(self, got: Mapping[str, str]) -> bool:
        """Tell whether *got*, the hash of the whole or of tensors, is of this version."""
        known = {"": self.sha256, **self.tensors}
        return all(known[part] == sha256 for part, sha256 in got.items())


@dataclass
class Thing:
    """A file of an origin, and every version that it ever had."""

    name: str
    size_bytes: int
    site: Site
    etag: str | None
    dates: bool
    """It has a Last-Modified that is old enough to tell versions apart."""
    is_stated: bool
    """Its SHA-256 is stated: then it has one version, and may be damaged on its way."""
    ignores_match: bool
    signed_uses: int
    """How many requests each of its links is good for; 0 if it is not behind signed links."""
    has_tensors: bool
    random: random.Random
    versions: list[Version] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    question_faults: list[Fault] = field(default_factory=list)

    @property
    def file(self) -> File:
        """What its origin has now."""
        return self.site.origin.file(self.name)

    @property
    def url(self) -> str:
        return self.site.url(f"to/{self.name}" if self.signed_uses else self.name)

    def had(self, got: Mapping[str, str], began: float, ended: float) -> bool:
        """Tell whether one version of the time of a call had what it *got*."""
        return any(
            version.has(got) and version.ended > began - STALE_S and version.began < ended
            for version in self.versions
        )


@dataclass(frozen=True)
class Tree:
    """A directory of an origin: an index page of names, or a manifest of checksums as well."""

    name: str
    site: Site
    members: tuple[Thing, ...]
    listing: File

    @property
    def url(self) -> str:
        return self.site.url(self.name)


class World:
    """Everything that the seed decides about the origins."""

    def __init__(self, seed: str, sites: list[Site]) -> None:
        self._seed = seed
        self._random = random.Random(f"{seed}/world")
        self._noise = self._random.randbytes(max(SIZES) + 4096 * 1024)
        self.sites = sites
        self.things: list[Thing] = []
        for size in SIZES * 2:
            self._add(f"thing-{len(self.things)}", size)
        for number in range(3):
            self._add(f"model-{number}.safetensors", TENSORS_BYTES, has_tensors=True)
        self.trees = [self._tree(number) for number in range(4)]
        quiet = random.Random(f"{seed}/keepsake")
        self.keepsake = self._make("keepsake", KEEPSAKE_BYTES, quiet)
        """A file that callers never ask for: the conductor keeps it, and spoils its copy."""

    def __getitem__(self, name: str) -> Thing:
        return next(thing for thing in self.things if thing.name == name)

    def _add(self, name: str, size: int, **more: bool) -> Thing:
        thing = self._make(name, size, random.Random(f"{self._seed}/{name}"), **more)
        self.things.append(thing)
        return thing

    def _make(
        self,
        name: str,
        size: int,
        drawn: random.Random,
        *,
        site: Site | None = None,
        is_stated: bool | None = None,
        has_tensors: bool = False,
    ) -> Thing:
        etag, dates = drawn.choices(
            [('"v{}"', True), (None, True), ('W/"v{}"', True), ('W/"v{}"', False), (None, False)],
            [8, 4, 2, 1, 1],
        )[0]
        is_member = site is not None
        thing = Thing(
            name=name,
            size_bytes=size,
            site=site or drawn.choice(self.sites),
            etag=etag,
            dates=dates,
            is_stated=drawn.random() < 0.3 if is_stated is None else is_stated,
            ignores_match=drawn.random() < 0.5,
            signed_uses=0 if is_member else drawn.choice([0, 0, 0, 2, 3, 8]),
            has_tensors=has_tensors,
            random=drawn,
        )
        if thing.signed_uses:
            thing.site.origin.sign(f"to/{name}", name, uses=thing.signed_uses)
        thing.site.origin.serve(name, self._version(thing))
        return thing

    def _tree(self, number: int) -> Tree:
        drawn = random.Random(f"{self._seed}/tree/{number}")
        site, name, is_manifest = drawn.choice(self.sites), f"tree-{number}/", number % 2 == 0
        members = []
        for at, size in enumerate(MEMBER_SIZES):
            thing = self._make(
                f"{name}part-{at}", size, random.Random(f"{self._seed}/{name}{at}"),
                site=site, is_stated=is_manifest,
            )  # fmt: skip
            members.append(thing)
        self.things += members
        listing = site.origin.serve(*(_manifest if is_manifest else _index)(name, members))
        return Tree(name, site, tuple(members), listing)

    def change(self, thing: Thing) -> bool:
        """Have *thing* become another version at one of its next requests.

        Its length, too, is another one now and then. False if the last change is still to come.
        """
        now = time.monotonic()
        if thing.file.next_version is not None:
            return False
        if len(thing.versions) > 1:
            thing.versions[-2].ended = now
        thing.file.next_version = self._version(thing)
        thing.faults.insert(thing.random.randrange(CHANGE_WITHIN), Fault.CHANGE)
        return True

    def _version(self, thing: Thing) -> File:
        count = len(thing.versions)
        size = thing.size_bytes
        if count and size and thing.random.random() < 0.3:
            size = thing.random.choice([max(1, size - 1), size + 1, size // 2 + 1])
        data = self._noise[4096 * count : 4096 * count + size]
        tensors: dict[str, str] = {}
        if thing.has_tensors:
            data, tensors = _safetensors(data)
        whole = hashlib.sha256(data).hexdigest()
        thing.versions.append(Version(whole, tensors, time.monotonic()))
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
        if thing.file.next_version is not None:
            thing.faults.insert(thing.random.randrange(CHANGE_WITHIN), Fault.CHANGE)

    def sow_listing(self, tree: Tree, evil: float, drawn: random.Random) -> None:
        """Decide how its list is answered, which nobody states a checksum of."""
        wrong = drawn.choices([*MOODS], MOODS.values(), k=MOODS_AT_ONCE)
        tree.listing.faults[:] = [mood if drawn.random() < evil else Fault.NONE for mood in wrong]

    def _moods(self, thing: Thing, evil: float) -> list[Fault]:
        moods = MOODS | ({Fault.CORRUPT: 20} if thing.is_stated else {})
        wrong = thing.random.choices([*moods], moods.values(), k=MOODS_AT_ONCE)
        return [mood if thing.random.random() < evil else Fault.NONE for mood in wrong]

    def heal(self) -> None:
        """Have every origin answer as it should from now on."""
        for thing in self.things:
            thing.faults.clear()
            thing.question_faults.clear()
        for tree in self.trees:
            tree.listing.faults.clear()


def _manifest(name: str, members: list[Thing]) -> tuple[str, File]:
    stated = [
        {
            "path": thing.name.removeprefix(name),
            "size_bytes": len(data := thing.file.data),
            "sha256": thing.versions[0].sha256,
            "crc32c": [
                crc32c(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)
            ],
        }
        for thing in members
    ]
    text = json.dumps({"format": 1, "files": stated})
    return f"{name}ckptd-manifest.json", File(text.encode(), etag='"list"')


def _index(name: str, members: list[Thing]) -> tuple[str, File]:
    names = [thing.name.removeprefix(name) for thing in members]
    links = "".join(f'<a href="{each}">{each}</a>' for each in names)
    return name, File(f"<h1>Index of /{name}</h1>{links}".encode(), etag=None)


def _safetensors(noise: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a file whose tensors are made of *noise*, and the SHA-256 of each."""
    step = -(-len(noise) // len(TENSORS))
    cuts = [min(at * step, len(noise)) for at in range(len(TENSORS) + 1)]
    described, hashes = {}, {}
    for name, (start, end) in zip(TENSORS, pairwise(cuts), strict=True):
        described[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        hashes[name] = hashlib.sha256(noise[start:end]).hexdigest()
    header = json.dumps(described).encode()
    return len(header).to_bytes(8, "little") + header + noise, hashes


def _date(count: int) -> str:
    """A time long ago, another one for each version."""
    return OLD.replace("08:49:37", f"{count // 3600 % 24:02}:{count // 60 % 60:02}:{count % 60:02}")
