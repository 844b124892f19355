"""Nodes: a daemon each, and the ranks of one job, which speak the save protocol to theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.rank import Rank, content

SIZE = (1 << 20) + 77


class Cluster:
    """The ranks of one job on some nodes, below one root that all of them share.

    Each rank has an image that another salt makes another, and one that is always the same. Where
    there is one node only, its daemon is told of no other.
    """

    def __init__(
        self, daemons: Sequence[Daemon], root: Path, *, each: int, at: Path, incarnation: str
    ) -> None:
        """Each node has so many ranks; they see as *at* what is *root* to the test."""
        self.daemons, self.root = list(daemons), root
        self._each, self._at, self._incarnation = each, at, incarnation
        self.ranks = [self._rank(number) for number in range(len(daemons) * each)]
        self.names = self.join(self.ranks)

    @property
    def run(self) -> Path:
        return self.root / "e" / "r"

    def daemon_of(self, rank: int) -> Daemon:
        return self.daemons[rank // self._each]

    def images(self, rank: int) -> list[tuple[str, int]]:
        mine = [(f"__{rank}_0.distcp", SIZE), *((name, SIZE) for name in self.still(rank))]
        return [*mine, (".metadata", 100)] if rank == 0 else mine

    def still(self, rank: int) -> list[str]:
        return [f"__{rank}_1.distcp"]

    @property
    def plan(self) -> list[tuple[str, int]]:
        return [image for rank in self.ranks for image in self.images(rank.rank)]

    def join(self, ranks: Sequence[Rank]) -> list[str]:
        for rank in ranks:
            rank.begin("join")
        return _answers(ranks)

    def open(self, sequence: int, step: int, *, only: Sequence[int] = (), **options: Any) -> str:
        names = self.names if len(self.daemons) > 1 else []
        for rank in self._some(only):
            rank.begin("open", sequence=sequence, step=step, daemons=names, **options)
        attempts = {attempt for attempt, _ in _answers(self._some(only))}
        assert len(attempts) == 1, "every daemon calls it the same"
        return attempts.pop()

    def reserve(self, *, only: Sequence[int] = ()) -> None:
        for rank in self._some(only):
            rank.begin("reserve", images=self.images(rank.rank))
        _answers(self._some(only))

    def copy(self, *, salt: str = "", only: Sequence[int] = ()) -> None:
        for rank in self._some(only):
            rank.begin("copy", salt=salt, still=self.still(rank.rank))
        _answers(self._some(only))

    def stage(
        self, sequence: int, step: int = 7, *, salt: str = "", only: Sequence[int] = (), **how: Any
    ) -> str:
        """Every rank copies, none seals; return what the attempt is called."""
        attempt = self.open(sequence, step, only=only, **how)
        self.reserve(only=only)
        self.copy(salt=salt, only=only)
        return attempt

    def seal(self, *, only: Sequence[int] = (), loss: float = 0.5) -> None:
        for rank in self._some(only):
            plan = self.plan if rank.rank == 0 else None
            rank.begin("seal", plan=plan, metrics={"loss": loss})
        _answers(self._some(only))

    def save(self, sequence: int, step: int = 7, *, loss: float = 0.5, **how: Any) -> str:
        attempt = self.stage(sequence, step, **how)
        self.seal(loss=loss)
        assert self.outcomes() == ["COMMITTED"] * len(self.ranks)
        return attempt

    def watch(self, *, only: Sequence[int] = (), **which: Any) -> None:
        """Have the ranks follow the attempt; `told` says what they heard."""
        for rank in self._some(only):
            rank.begin("watch", **which)

    def told(self, *, only: Sequence[int] = ()) -> list[Any]:
        return _answers(self._some(only))

    def outcomes(self, *, only: Sequence[int] = ()) -> list[str]:
        self.watch(only=only)
        return [told["state"] for told in self.told(only=only)]

    def is_whole(self, step: int = 7, salt: str = "") -> bool:
        """Every image is there, byte for byte, and the manifest knows it, and nothing else is."""
        directory = self.run / f"step-{step}"
        manifest = json.loads((directory / "manifest.json").read_bytes())
        images = dict(self.plan)
        assert {name: one["size_bytes"] for name, one in manifest["images"].items()} == images
        still = {name for rank in self.ranks for name in self.still(rank.rank)}
        for name, size in images.items():
            salted = name if name in still else salt + name
            assert (directory / name).read_bytes() == content(salted, size), name
        expected = {"manifest.json", *images, *(f"{name}.sums" for name in images)}
        # the rest is what a node that came too late was writing, or what has still to be tidied up
        named = {path.name for path in directory.iterdir() if path.suffix != ".tmp"}
        assert named - {".receipts"} == expected
        return True

    def inode(self, step: int, rank: int) -> int:
        """What tells whether two steps have the rank's image once on the disk."""
        return (self.run / f"step-{step}" / f"__{rank}_0.distcp").stat().st_ino

    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.run.glob("step-*"))

    def left(self) -> list[str]:
        """What is there of attempts that are not committed."""
        return sorted(path.name for path in (self.run / ".attempts").iterdir())

    def revive(self) -> None:
        """Start what is dead again, daemons first."""
        for daemon in self.daemons:
            if daemon.process is None:
                daemon.start()
        dead = [rank.rank for rank in self.ranks if rank.process.returncode is not None]
        for number in dead:
            self.ranks[number] = self._rank(number)
        self.join(self._some(dead) if dead else [])

    def end(self) -> None:
        for rank in self.ranks:
            rank.end()

    def _rank(self, number: int) -> Rank:
        daemon, size = self.daemon_of(number), len(self.daemons) * self._each
        return Rank(
            *(daemon.socket, self._at, number, size),
            within=daemon.within,
            incarnation=self._incarnation,
        )

    def _some(self, only: Sequence[int]) -> list[Rank]:
        return [rank for rank in self.ranks if not only or rank.rank in only]


def _answers(ranks: Sequence[Rank]) -> list[Any]:
    """Return what each rank answers; raises the first error once all have answered."""
    found: list[Any] = []
    failures: list[errors.CkptdError] = []
    for rank in ranks:
        try:
            found.append(rank.answer())
        except errors.CkptdError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]
    return found


@contextmanager
def cluster(
    short_path: Path,
    root: Path,
    size: int,
    *,
    each: int = 1,
    at: Path | None = None,
    within: Sequence[Sequence[str]] = (),
    incarnation: str = "i",
    **settings: object,
) -> Iterator[Cluster]:
    """Start *size* nodes of *each* ranks, whose daemons have *settings*; see `Cluster`.

    *within* are commands that run another where that node is.
    """
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(Daemon(short_path / str(node), within=wrapper, **settings))
            for node, wrapper in enumerate(within or [()] * size)
        ]
        nodes = Cluster(daemons, root, each=each, at=at or root, incarnation=incarnation)
        stack.callback(nodes.end)
        yield nodes
