"""Where the cases take place: one origin, one daemon, a folder on the disk that is measured."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckptd.bench import node, origin
from ckptd.bench.contestants import Contestant
from ckptd.bench.node import Node
from ckptd.bench.origin import Door, Origin
from ckptd.bench.worker import Job

OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    size_bytes: int = 2 << 30
    """Of the one object."""
    repeats: int = 5
    """Rounds that count."""
    files: int = 200
    file_bytes: int = 2_600_000
    ranks: int = 8
    waiters: int = 1000
    warm_fetches: int = 200
    """Of each rank."""
    starts: int = 5
    """Of a daemon."""


@dataclass(slots=True)
class Stage:
    """What a case needs."""

    plan: Plan
    origin: Origin
    node: Node
    scratch: Path
    peers: Sequence[Contestant]
    missing: tuple[str, ...]
    say: Callable[[str], None]
    """Tells people how far it is."""
    _hashes: dict[str, str] = field(default_factory=dict)

    def object(self) -> str:
        """Return the name of the one object, which is there from now on."""
        if not (self.origin.files / OBJECT).exists():
            self.say("making the object")
            self.origin.make(OBJECT, self.plan.size_bytes)
        return OBJECT

    def files(self) -> tuple[str, ...]:
        """Return the names of the small files, which are there from now on."""
        names = tuple(f"many/{index:04}" for index in range(self.plan.files))
        if not (self.origin.files / names[0]).exists():
            self.say("making the small files")
            for name in names:
                self.origin.make(name, self.plan.file_bytes)
        return names

    def sha256(self) -> str:
        """Return the hash of the one object."""
        name = self.object()
        if name not in self._hashes:
            with (self.origin.files / name).open("rb") as file:
                self._hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[name]

    @contextmanager
    def job(self, door: Door, names: tuple[str, ...]) -> Iterator[Job]:
        """Give a job with an empty folder, which is gone afterwards; the disk is quiet then."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            (into := Path(folder, "results")).mkdir()
            os.sync()
            yield Job(door.url, names, str(into), str(door.ca_file or ""))


@contextmanager
def stage(
    directory: Path,
    plan: Plan,
    peers: Sequence[Contestant],
    missing: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Stage]:
    """Set everything up below *directory*; it is gone after the block."""
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=directory, prefix="ckptd-bench-")
        scratch = Path(stack.enter_context(made)).absolute()
        started = stack.enter_context(origin.serving(scratch / "origin"))
        running = stack.enter_context(node.running(scratch / "state", started.ca_file))
        yield Stage(plan, started, running, scratch, peers, tuple(missing), say)
